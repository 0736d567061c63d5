"""How A and B start: the adapted function is the base function, whatever the start."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import assert_close

import jlora

KEY = jax.random.key(0)
MOVING = ("pissa", "pissa_niter_4", "olora")
ALL = ("kaiming", "gaussian", "orthogonal", *MOVING)
AXES = {"stack": jlora.Axes((2,), (1, 3), (0,))}


def tree(dtype="float32"):
    def matrix(seed, *shape):
        return jax.random.normal(jax.random.key(seed), shape).astype(dtype)

    return {"w": matrix(0, 24, 18), "stack": matrix(1, 3, 5, 14, 2)}


def split(params, init, *, rank=4, targets="w|stack", **options):
    config = jlora.LoraConfig(targets=targets, rank=rank, alpha=7, init=init, **options)
    return jlora.split(params, config, KEY, axes={**AXES, "w": jlora.Axes()})


@pytest.mark.parametrize("init", ALL)
def test_splitting_and_merging_give_the_parameters_back(init):
    params = tree()
    frozen, lora = split(params, init)
    assert jax.tree.structure(frozen) == jax.tree.structure(params)
    merged = jlora.merge(frozen, lora)
    if init in ("kaiming", "gaussian"):
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, frozen, params)))
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, merged, params)))
    else:
        assert_close(merged, params, 1e-6)
        moved = [np.abs(params[name] - frozen[name]).max() > 0.1 for name in params]
        assert all(moved) == (init in MOVING)


@pytest.mark.parametrize("init", ALL)
def test_half_precision_weights_come_back_within_their_rounding(init):
    params = tree("bfloat16")
    frozen, lora = split(params, init)
    assert frozen["w"].dtype == jnp.bfloat16
    assert lora["w"].a.dtype == jnp.float32
    assert_close(jlora.merge(frozen, lora), params, 2**-7)


@pytest.mark.parametrize("init", ALL)
def test_the_start_of_a_leaf_depends_on_its_own_path_alone(init):
    _, both = split(tree(), init)
    _, one = split(tree(), init, targets="w")
    assert np.array_equal(both["w"].a, one["w"].a)
    assert np.array_equal(both["w"].b, one["w"].b)


@pytest.mark.parametrize("init", ALL)
def test_shapes_alone_are_enough(init):
    params = tree()
    _, lora = split(params, init)
    _, abstract = jax.eval_shape(lambda params: split(params, init), params)
    assert jax.tree.map(jnp.shape, lora) == jax.tree.map(jnp.shape, abstract)


@pytest.mark.parametrize("init", [*ALL, "lora_ga"])
@pytest.mark.parametrize(("method", "dtype"), [("lora", "float32"), ("dora", "bfloat16")])
def test_the_frozen_tree_is_formed_again_from_the_start_alone(init, method, dtype):
    params = {**tree(dtype), "bias": jnp.ones(18)}
    options = {"method": method, "train": "bias", "dtype": dtype}
    drawn = "kaiming" if init == "lora_ga" else init
    config = jlora.LoraConfig(targets="w|stack", rank=4, alpha=7, init=drawn, **options)
    frozen, start = jlora.split(params, config, KEY, axes={**AXES, "w": jlora.Axes()})
    if init == "lora_ga":

        def loss(params, x):
            rows = jnp.einsum("ni,lhio->lnho", x[:, :14], params["stack"])
            return ((x @ params["w"]) ** 2).sum() + (rows**2).sum()

        x = [jax.random.normal(KEY, (9, 24))]
        frozen, start, config = jlora.lora_ga(loss, frozen, start, x, config, KEY)
    again = jlora.frozen_beside(params, start, config)
    assert jax.tree.structure(again) == jax.tree.structure(frozen)
    jax.tree.map(np.testing.assert_array_equal, again, frozen)
    same = jax.tree.leaves(jax.tree.map(lambda a, b: a is b, again, params))
    assert all(same) == (init not in (*MOVING, "lora_ga"))


def test_a_class_that_does_not_say_what_its_start_took_is_named():
    @jlora.extend.register("takes-half")
    @dataclasses.dataclass(frozen=True)
    class TakesHalf(jlora.LoraWeight):
        taken_from = jlora.extend.Method.taken_from

    params = {"w": tree()["w"]}
    config = jlora.LoraConfig(targets="w", rank=4, init="pissa", method=TakesHalf)
    start = {"w": TakesHalf(**vars(split(params, "pissa", targets="w")[1]["w"]))}
    with pytest.raises(ValueError, match="TakesHalf: the start took weight into the adapter"):
        jlora.frozen_beside(params, start, config)


def test_gaussian_and_kaiming_have_their_deviations():
    params = {"w": jnp.zeros((300, 200))}
    for init, deviation in (("gaussian", 1 / 50), ("kaiming", 300**-0.5 / 3**0.5)):
        _, lora = split(params, init, rank=50, targets="w")
        assert float(lora["w"].a.std()) == pytest.approx(deviation, rel=0.02)
        assert not np.asarray(lora["w"].b).any()


def test_pissa_takes_the_first_singular_vectors():
    params = tree()
    frozen, lora = split(params, "pissa")
    u, s, vt = np.linalg.svd(params["w"])
    np.testing.assert_allclose(lora["w"].delta(), (u[:, :4] * s[:4]) @ vt[:4], atol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(frozen["w"])[1][:14], s[4:], atol=1e-4)
    np.testing.assert_allclose(
        np.linalg.norm(lora["w"].a, axis=0), np.linalg.norm(lora["w"].b, axis=1), rtol=1e-5
    )


def test_fast_pissa_is_near_the_exact_one_and_nearer_with_iterations():
    params = {"w": tree()["w"]}
    _, exact = split(params, "pissa", rank=2, targets="w")
    errors = []
    for iterations in (0, 2, 16):
        _, fast = split(params, f"pissa_niter_{iterations}", rank=2, targets="w")
        errors.append(float(jnp.linalg.norm(fast["w"].delta() - exact["w"].delta())))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01 * float(jnp.linalg.norm(exact["w"].delta()))


def test_the_orthogonal_start_is_of_full_rank_and_multiplies_to_zero():
    _, lora = split(tree(), "orthogonal")
    node = lora["w"]
    assert np.linalg.matrix_rank(node.a) == np.linalg.matrix_rank(node.b) == 2  # of 4: halves
    assert float(jnp.abs(node.delta()).max()) < 1e-6


def test_an_odd_rank_has_no_halves():
    with pytest.raises(ValueError, match="init is 'orthogonal': expected an even rank, got 3"):
        jlora.LoraConfig(targets="w", rank=3, init="orthogonal")
