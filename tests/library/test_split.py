"""`split` makes a small tree beside the frozen one: shapes, start, keys."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora

KEY = jax.random.key(0)
CONFIG = jlora.LoraConfig(targets=".", rank=3, alpha=6)


def weight(*shape, dtype="float32", seed=1):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def shapes(lora):
    return {path: (node.a.shape, node.b.shape) for path, node in lora.items()}


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_factors_have_the_shapes_that_the_axes_say():
    params = {
        "plain": weight(7, 11),
        "torch": weight(13, 5),
        "query": weight(7, 4, 5),
        "out": weight(4, 5, 7),
        "scanned": weight(2, 7, 11),
        "experts": weight(7, 3, 11),
    }
    axes = {
        "plain": jlora.Axes(),
        "torch": jlora.Axes(inputs=(1,), outputs=(0,)),
        "query": jlora.Axes(inputs=(0,), outputs=(1, 2)),
        "out": jlora.Axes(inputs=(0, 1), outputs=(2,)),
        "scanned": jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,)),
        "experts": jlora.Axes(stack=(1,), inputs=(0,), outputs=(2,)),
    }
    frozen, lora = jlora.split(params, CONFIG, KEY, axes=axes)
    assert shapes(lora) == {
        "plain": ((7, 3), (3, 11)),
        "torch": ((5, 3), (3, 13)),
        "query": ((7, 3), (3, 4, 5)),
        "out": ((4, 5, 3), (3, 7)),
        "scanned": ((2, 7, 3), (2, 3, 11)),
        "experts": ((3, 7, 3), (3, 3, 11)),
    }
    assert {path: node.shape for path, node in lora.items()} == {
        path: leaf.shape for path, leaf in params.items()
    }
    assert {path: node.delta().shape for path, node in lora.items()} == {
        path: leaf.shape for path, leaf in params.items()
    }
    assert same(frozen, params)


def test_a_node_holds_two_factors_and_a_scaling():
    _, lora = jlora.split({"w": weight(7, 11)}, CONFIG, KEY)
    assert [leaf.shape for leaf in jax.tree.leaves(lora)] == [(7, 3), (3, 11), ()]
    assert lora["w"].scaling == 2.0
    assert lora["w"].rank == 3
    assert lora["w"].scaling.dtype == jnp.float32


def test_the_start_is_uniform_within_the_root_of_the_fan_in():
    _, lora = jlora.split({"w": weight(400, 11)}, CONFIG, KEY)
    a = np.asarray(lora["w"].a)
    bound = 400**-0.5
    assert np.abs(a).max() <= bound
    np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.05)
    np.testing.assert_allclose(a.mean(), 0, atol=0.1 * bound)
    assert not np.asarray(lora["w"].b).any()


def test_factors_are_float32_over_bfloat16_weights_unless_asked():
    params = {"w": weight(7, 11, dtype="bfloat16")}
    _, lora = jlora.split(params, CONFIG, KEY)
    assert lora["w"].a.dtype == lora["w"].b.dtype == jnp.float32
    _, lora = jlora.split(params, dataclasses.replace(CONFIG, dtype="bfloat16"), KEY)
    assert lora["w"].a.dtype == lora["w"].b.dtype == jnp.bfloat16


def test_adapting_one_more_leaf_changes_no_other():
    params = {"a": weight(7, 11), "b": weight(7, 11), "c": weight(7, 11)}
    _, every = jlora.split(params, CONFIG, KEY)
    _, two = jlora.split(params, dataclasses.replace(CONFIG, targets="a|c"), KEY)
    assert same(two, {path: every[path] for path in ("a", "c")})
    _, beside = jlora.split({**params, "aa": weight(5, 5)}, CONFIG, KEY)
    assert same(every, {path: beside[path] for path in params})


def test_the_order_of_a_dict_is_irrelevant():
    one = {"a": weight(7, 11), "b": weight(5, 13)}
    other = dict(reversed(one.items()))
    assert same(jlora.split(one, CONFIG, KEY)[1], jlora.split(other, CONFIG, KEY)[1])


def test_no_two_leaves_start_alike():
    params = {"a": weight(7, 11), "b": weight(7, 11)}
    _, lora = jlora.split(params, CONFIG, KEY)
    assert not np.array_equal(lora["a"].a, lora["b"].a)
    _, again = jlora.split(params, CONFIG, jax.random.key(1))
    assert not np.array_equal(lora["a"].a, again["a"].a)


def test_the_start_of_a_path_is_known_in_advance():
    """A change here changes every seeded run."""
    _, lora = jlora.split({"layers": {"q": weight(7, 11)}}, CONFIG, KEY)
    np.testing.assert_allclose(lora["layers/q"].a[0], KNOWN, rtol=1e-5)


KNOWN = [0.01327439, -0.21934354, -0.33227465]


def test_split_computes_nothing_on_shapes():
    params = {
        "w": jax.ShapeDtypeStruct((7, 11), "bfloat16"),
        "b": jax.ShapeDtypeStruct((3,), "int8"),
    }
    frozen, lora = jax.eval_shape(lambda p, k: jlora.split(p, CONFIG, k), params, KEY)
    assert frozen == params
    assert shapes(lora) == {"w": ((7, 3), (3, 11))}
    assert jax.eval_shape(jlora.merge, frozen, lora) == params


def test_split_under_jit_is_split():
    params = {"w": weight(7, 11), "b": weight(11)}
    assert same(
        jax.jit(lambda p, k: jlora.split(p, CONFIG, k))(params, KEY),
        jlora.split(params, CONFIG, KEY),
    )


def test_many_adapters_come_from_vmap_over_keys():
    params = {"w": weight(7, 11)}
    keys = jax.random.split(KEY, 5)
    _, many = jax.vmap(lambda key: jlora.split(params, CONFIG, key), out_axes=(None, 0))(keys)
    assert shapes(many) == {"w": ((5, 7, 3), (5, 3, 11))}
    _, third = jlora.split(params, CONFIG, keys[3])
    assert same(jax.tree.map(lambda leaf: leaf[3], many), third)


def test_legacy_keys_serve_as_well():
    _, lora = jlora.split({"w": weight(7, 11)}, CONFIG, jax.random.PRNGKey(0))
    assert same(lora, jlora.split({"w": weight(7, 11)}, CONFIG, KEY)[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array | None


def test_any_pytree_will_do():
    params = {
        "tuple": (weight(7, 11), None),
        "list": [Layer(weight(5, 13), None), Layer(weight(5, 13), weight(13))],
    }
    frozen, lora = jlora.split(params, CONFIG, KEY)
    assert shapes(lora) == {
        "list/0/kernel": ((5, 3), (3, 13)),
        "list/1/kernel": ((5, 3), (3, 13)),
        "tuple/0": ((7, 3), (3, 11)),
    }
    merged = jlora.merge(frozen, lora)
    assert same(merged, params)
    assert isinstance(merged["list"][1], Layer)
    assert merged["tuple"][1] is None


def test_axes_given_for_a_leaf_that_is_not_targeted_do_not_matter():
    axes = {"w": jlora.Axes(), "other": jlora.Axes(inputs=(0, 1), outputs=(2,))}
    params = {"w": weight(7, 11), "other": weight(2, 3, 5)}
    _, lora = jlora.split(params, jlora.LoraConfig(targets="^w", rank=2), KEY, axes=axes)
    assert list(lora) == ["w"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_fresh_adapter_changes_nothing(dtype):
    params = {"w": weight(7, 11, dtype=dtype)}
    frozen, lora = jlora.split(params, CONFIG, KEY)
    x = weight(5, 7, dtype=dtype, seed=2)
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T  # noqa: E731
    assert np.array_equal(jax.jit(jlora.lift(fn))(frozen, lora, x), jax.jit(fn)(params, x))


def test_a_seed_in_the_place_of_a_key_is_told_with_what_to_write():
    params = {"w": weight(7, 11)}
    with pytest.raises(ValueError, match=r"the key is 0: expected a random key, such as jax"):
        jlora.split(params, CONFIG, 0)
    for old in (jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0))):
        assert same(jlora.split(params, CONFIG, old), jlora.split(params, CONFIG, KEY))
    dropped = dataclasses.replace(CONFIG, dropout=0.5)
    frozen, lora = jlora.split(params, dropped, KEY)
    with pytest.raises(ValueError, match=r"the key is 3: expected a random key"):
        jlora.lift(lambda p, x: x @ p["w"])(frozen, lora, weight(2, 7), dropout_key=3)
