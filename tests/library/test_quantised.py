"""Over quantised weights everything is as over the weights that they stand for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from laws import assert_close, trained
from quantised_leaves import (
    KINDS,
    SHAPES,
    TOKENS,
    leaf_of,
    lifted_over_both,
    model,
    one_layer_at_a_time,
    small_and_plain,
)

import jlora
from jlora._quantised import WRITTEN, MixedStack

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("int8", "lora"), ("nf4", "dora"), ("Q4_1", "lora"), ("Q6_K", "lora")),
        ("nf4 across rows", "lora"),
    ],
)
def test_lifted_over_quantised_weights_is_lifted_over_what_they_stand_for(name, method):
    lifted_over_both(name, method)


@pytest.mark.parametrize("name", ["int8", "nf4", "Q6_K"])
def test_without_an_adapter_a_model_computes_with_what_its_weights_stand_for(name):
    small, plain = small_and_plain(name)
    assert_close(jax.jit(jlora.lift(model))(small, {}, TOKENS), jax.jit(model)(plain, TOKENS), 1e-5)


@pytest.mark.parametrize("name", ["nf4", "Q4_1"])
def test_in_a_loop_one_layer_is_decoded_at_a_time_and_none_is_kept(name, compiled_as_ever):
    one_layer_at_a_time(name)


def test_the_gradient_of_a_frozen_leaf_is_none_of_numbers():
    small, _ = small_and_plain("Q4_1")

    def loss(frozen):
        return jlora.lift(model)(frozen, {}, TOKENS)[0].sum()

    grads = jax.grad(loss, allow_int=True)(small)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jax.dtypes.float0}


def test_layers_of_several_formats_are_one_stack():
    axes = jlora.Axes((1,), (2,), (0,))
    shape, order = (256, 8), [0, 1, 0, 0, 1]
    stacks = tuple(
        leaf_of(name, (order.count(at), *shape), axes) for at, name in enumerate(["Q4_K", "Q6_K"])
    )
    at = [order[:layer].count(its) for layer, its in enumerate(order)]
    leaf = MixedStack(
        stacks, jnp.array(order), jnp.array(at), (5, *shape), jnp.dtype("float32"), axes
    )
    rows = [stacks[its].plain()[place] for its, place in zip(order, at, strict=True)]
    np.testing.assert_array_equal(leaf.plain(), jnp.stack(rows))

    def fn(p, x):
        def layer(x, w):
            return x + jnp.pad(jnp.tanh(x @ w), [(0, 0), (0, 248)]), None

        return lax.scan(layer, x, p["w"])[0] @ p["w"][3]

    frozen, plain = {"w": leaf}, {"w": leaf.plain()}
    config = jlora.LoraConfig(targets="w", rank=2)
    _, lora = jlora.split(frozen, config, KEY, axes={"w": axes})
    lora, x = trained(lora), jax.random.normal(KEY, (3, 256)) / 50

    def loss(lora, base):
        return jnp.square(jlora.lift(fn, strict=True)(base, lora, x)).mean()

    step = jax.jit(jax.value_and_grad(loss))
    assert_close(step(lora, frozen), step(lora, plain), 1e-4)
    merged = jlora.merge(frozen, lora)
    with pytest.raises(ValueError, match="w changed, and Q4_K and Q6_K is only read"):
        jlora.requantize(merged, like=frozen)
    assert jlora.requantize(plain, like=frozen)["w"] is leaf


# ---- quantize, dequantize, requantize ------------------------------------------------------------


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_weight_is_near_what_it_was_and_the_same_when_it_is_quantised_again(name):
    axes = {"w": jlora.Axes((1,), (2,), (0,))}
    params = {"w": normal(3, 70, 9)}  # 70: no blocks divide it
    small = jlora.quantize(params, name, targets="w", axes=axes)
    plain = jlora.dequantize(small)
    worst = float(jnp.abs(plain["w"] - params["w"]).max())
    assert 0 < worst < {"f": 0.6, "4": 0.4, "5": 0.2, "n": 0.02, "8": 0.02}[name[1]]
    again = jlora.requantize(plain, like=small)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), small, again))


@pytest.mark.parametrize("name", ["int8", "Q4_1", "nf4"])
def test_what_did_not_change_keeps_its_bytes(name):
    axes = {"w": jlora.Axes((1,), (2,), (0,))}
    small = jlora.quantize({"w": normal(3, 64, 9)}, name, targets="w", axes=axes)
    plain = jlora.dequantize(small)
    changed = {"w": plain["w"].at[1, 5, 4].add(0.5)}
    again = jlora.requantize(changed, like=small)["w"]
    other = again.plain() != plain["w"]
    where = {"int8": other[1, :, 4], "Q4_1": other[1, :32, 4], "nf4": other[1]}[name]
    assert int(where.sum()) == int(other.sum()) > 0


@pytest.mark.parametrize("name", WRITTEN)
def test_zeros_stay_zeros(name):
    weight = normal(64, 3).at[:, 1].set(0)
    plain = jlora.dequantize(jlora.quantize({"w": weight}, name, targets="w"))["w"]
    assert bool(jnp.isfinite(plain).all())
    assert not plain[:, 1].any()
    assert bool(plain[:, 0].any())


def test_all_linear_quantises_what_it_would_adapt():
    plain = {path: normal(*shape) for path, shape in SHAPES.items()}
    axes = jlora.trace_axes(model, plain, TOKENS)
    small = jlora.quantize(plain, "int8", axes=axes)
    assert {path for path in plain if small[path] is not plain[path]} == set(axes.linear)


def test_the_dtype_is_that_of_the_weight():
    small = jlora.quantize({"w": normal(64, 3).astype("bfloat16")}, "Q8_0", targets="w")
    assert small["w"].dtype == jlora.dequantize(small)["w"].dtype == jnp.bfloat16
    assert jlora.lift(lambda p, x: x @ p["w"])(small, {}, jnp.ones((2, 64), "bfloat16")).dtype == (
        jnp.bfloat16
    )


@pytest.mark.parametrize(
    ("format", "params", "message"),
    [
        ("q4_2", {}, r"there is no format 'q4_2': expected one of int8, nf4, Q8_0"),
        ("Q4_K", {}, r'Q4_K is only read, as files of models have it: .*quantize="stored"'),
        ("int8", {"w": np.ones((3, 2), int)}, "can't take:\n  w is of dtype int64"),
        ("int8", {"w": normal(3, 2, 4, 5)}, "can't take:\n  w has shape"),
        ("nf4", {"w": normal(3, 2).at[1, 1].set(jnp.nan)}, "w has values that are no finite"),
        ("Q8_0", {"w": normal(3, 2).at[1, 1].set(jnp.inf)}, "w has values that are no finite"),
        ("Q4_0", {"w": normal(3, 2) * 1e9}, "w has values beyond what Q4_0 can hold"),
    ],
)
def test_what_can_not_be_quantised_is_named(format, params, message):
    with pytest.raises(ValueError, match=message):
        jlora.quantize({"w": normal(3, 2)} | params, format, targets="w")


def test_loftq_comes_nearer_to_the_weights_with_each_iteration():
    axes = {"w": jlora.Axes((1,), (2,), (0,))}
    params = {"w": normal(3, 64, 48), "b": normal(48)}
    config = jlora.LoraConfig(targets="w", rank=4, alpha=12.0)  # scaling 3
    rounded = jlora.dequantize(jlora.quantize(params, "Q4_0", targets="w", axes=axes))["w"]
    far = [float(jnp.abs(rounded - params["w"]).mean())]
    for iterations in (1, 3):
        frozen, lora = jlora.loftq(params, "Q4_0", config, KEY, axes=axes, iterations=iterations)
        assert frozen["b"] is params["b"]
        assert frozen["w"].format == "Q4_0"
        far.append(float(jnp.abs(jlora.merge(frozen, lora)["w"] - params["w"]).mean()))
    assert far[2] < 0.97 * far[1] < 0.9 * far[0]
    u, s, vt = np.linalg.svd(np.asarray(params["w"] - rounded))
    frozen, lora = jlora.loftq(params, "Q4_0", config, KEY, axes=axes)
    want = (u[:, :, :4] * s[:, None, :4]) @ vt[:, :4]
    got = jlora.merge(frozen, lora)["w"] - jlora.dequantize(frozen)["w"]
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_loftq_is_for_plain_lora():
    config = jlora.LoraConfig(targets="w", rank=2, method="dora")
    with pytest.raises(ValueError, match="plain LoRA, whose delta is A B: method is 'dora'"):
        jlora.loftq({"w": normal(64, 48)}, "nf4", config, KEY)
    config = jlora.LoraConfig(targets="w", rank=2)
    with pytest.raises(ValueError, match="iterations is 0: expected at least 1"):
        jlora.loftq({"w": normal(64, 48)}, "nf4", config, KEY, iterations=0)


def test_explain_says_how_each_weight_is_kept():
    small, _ = small_and_plain("Q4_1")
    report = jlora.explain(model, small, {}, TOKENS)
    assert report.small["up"] == "Q4_1, 720 bytes in the place of 1.15 kB"
    assert "up is kept small: Q4_1, 720 bytes in the place of 1.15 kB" in str(report)


def test_what_moves_otherwise_is_decoded_and_explain_says_where():
    small = {"w": leaf_of("Q4_1", (64, 6), jlora.Axes())}

    def fn(p):
        return jnp.tanh(p["w"]) + jnp.flip(p["w"], 0)

    assert_close(jlora.lift(fn)(small, {}), fn({"w": small["w"].plain()}), 1e-5)
    uses = jlora.explain(fn, small, {}).uses
    assert {use.operation for use in uses} == {"tanh", "rev"}
    assert all(use.formed and use.why.startswith("decoded") for use in uses)


def test_a_quantised_tree_is_not_quantised_again():
    small = jlora.quantize({"w": normal(64, 3)}, "Q8_0", targets="w")
    with pytest.raises(ValueError, match="w is Q8_0 already"):
        jlora.quantize(small, "int8", targets="w")


def test_trees_that_do_not_fit_are_named():
    small = jlora.quantize({"w": normal(64, 3)}, "Q8_0", targets="w")
    with pytest.raises(ValueError, match="w is not among the merged parameters\n  v is not exp"):
        jlora.requantize({"v": normal(3, 2)}, like=small)
    with pytest.raises(ValueError, match=r"w has shape \(64, 4\), expected \(64, 3\)"):
        jlora.requantize({"w": normal(64, 4)}, like=small)


# ---- The other verbs -----------------------------------------------------------------------------


def test_counts_are_of_weights_and_bytes_of_what_is_stored():
    params = {"w": normal(64, 96), "b": normal(96)}
    small = jlora.quantize(params, "Q8_0", targets="w")
    _, lora = jlora.split(small, jlora.LoraConfig(targets="w", rank=2), KEY)
    told = jlora.summary(small, lora)
    assert told.frozen == 64 * 96 + 96
    assert told.frozen_bytes == 64 * 96 // 32 * 34 + 96 * 4


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_that_take_from_the_weight_leave_the_sum_as_it_was(init):
    params = {"w": normal(64, 96)}
    small = jlora.quantize(params, "Q5_1", targets="w")
    config = jlora.LoraConfig(targets="w", rank=3, init=init)
    frozen, lora = jlora.split(small, config, KEY)
    assert_close(jlora.merge(frozen, lora), jlora.dequantize(small), 1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_fingerprint_is_that_of_the_plain_weights_where_devices_agree(name):
    small, plain = small_and_plain(name)
    of_small, of_plain = (jlora.checkpoint.fingerprint(tree) for tree in (small, plain))
    assert jlora.checkpoint.differences(of_small, of_plain) == []
    said = {path for path, leaf in of_small.items() if leaf["sum"] is not None}
    assert said == (set() if name in ("int8", "nf4", "nf4 across rows") else set(SHAPES))
    if said:
        assert of_small == of_plain


def test_vmap_over_a_stack_and_reshapes_of_what_is_no_block(recwarn):
    axes = jlora.Axes((1,), (2,), (0,))
    for name, transposed in itertools.product(("int8", "nf4", "Q4_K"), (False, True)):
        leaf = leaf_of(name, (3, 40, 6), axes)
        x = normal(3, 5, 6 if transposed else 40)

        def fn(p, x, transposed=transposed):
            return jax.vmap(lambda w, x: x @ (w.T if transposed else w))(p["w"], x)

        assert_close(jax.jit(jlora.lift(fn))({"w": leaf}, {}, x), fn({"w": leaf.plain()}, x), 1e-4)
    assert not recwarn.list
