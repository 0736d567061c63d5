"""Law 1 on products: values and gradients, in every layout, and nothing merged."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from laws import adapted, assert_close, check_law_1

import jlora

X = jax.random.normal(jax.random.key(5), (5, 7))
Y = jax.random.normal(jax.random.key(6), (5, 11))
PARAMS = {
    "w": jax.random.normal(jax.random.key(7), (7, 11)),
    "v": jax.random.normal(jax.random.key(8), (7, 11)),
    "s": jax.random.normal(jax.random.key(9), (3, 7, 11)),
    "h": jax.random.normal(jax.random.key(10), (7, 2, 13)),
    "o": jax.random.normal(jax.random.key(11), (2, 13, 7)),
}
AXES = {
    "w": jlora.Axes(),
    "v": jlora.Axes(),
    "s": jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,)),
    "h": jlora.Axes(inputs=(0,), outputs=(1, 2)),
    "o": jlora.Axes(inputs=(0, 1), outputs=(2,)),
}

PRODUCTS = {
    "on the right": lambda p: X @ p["w"],
    "on the right, transposed": lambda p: Y @ p["w"].T,
    "on the left": lambda p: p["w"].T @ X.T,
    "a vector": lambda p: X[0] @ p["w"],
    "outputs contracted": lambda p: jnp.einsum("bo,io->bi", Y, p["w"]),
    "everything contracted": lambda p: jnp.einsum("bi,io,bo->b", X, p["w"], Y),
    "nothing contracted": lambda p: jnp.einsum("b,io->bio", X[:, 0], p["w"]),
    "a stack batched": lambda p: jnp.einsum("bi,eio->ebo", X, p["s"]),
    "a stack batched on both": lambda p: jnp.einsum("ebi,eio->beo", jnp.stack([X] * 3), p["s"]),
    "a stack contracted": lambda p: jnp.einsum("ebi,eio->bo", jnp.stack([X, 2 * X, -X]), p["s"]),
    "several outputs": lambda p: jnp.einsum("bi,ihd->hbd", X, p["h"]),
    "several inputs": lambda p: jnp.einsum(
        "bhd,hdo->bo", jnp.einsum("bi,ihd->bhd", X, p["h"]), p["o"]
    ),
    "batched over an output": lambda p: jnp.einsum("bo,io->bo", Y, p["w"]),
    "one-hot": lambda p: jax.nn.one_hot(jnp.array([1, 6, 0]), 7) @ p["w"],
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_stays_factored_and_right(name):
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    check_law_1(PRODUCTS[name], frozen, lora)


LOOKUPS = {
    "rows": lambda p: p["w"][jnp.array([[1, 2, 0], [5, 6, -3]])],
    "take": lambda p: jnp.take(p["w"], jnp.array([1, 5]), axis=0),
    "out of range, filled": lambda p: jnp.take(
        p["w"], jnp.array([1, 99, -88]), axis=0, mode="fill", fill_value=0.5
    ),
    "out of range, clipped": lambda p: jnp.take(p["w"], jnp.array([1, 99]), axis=0, mode="clip"),
    "one row at a run-time index": lambda p: lax.dynamic_index_in_dim(p["w"], jnp.int32(4)),
    "the table used for logits too": lambda p: p["w"][jnp.array([1, 4])] @ p["w"].T,
    "rows that go straight into a product": lambda p: (
        p["w"][jnp.array([[1, 4, 2], [0, 6, 6]])] @ p["v"].T
    ),
    "the first rows": lambda p: Y[:3] + p["w"][:3],
    "a table read by its columns": lambda p: jnp.sin(p["w"].T[jnp.array([1, 10, 4])]),
    "one row at a run-time index, mapped": lambda p: jax.vmap(
        lambda k: lax.dynamic_index_in_dim(p["w"], k, keepdims=False)
    )(jnp.array([1, 9, 0, -2, 3, 6])),
    "one column at a run-time index, mapped": lambda p: jax.vmap(
        lambda k: jnp.sin(lax.dynamic_slice(p["w"], (1, k), (7, 1)))
    )(jnp.array([1, 10, 13])),
    "scaled rows": lambda p: p["w"][jnp.array([1, 4])] * 3.0 + 1.0,
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_lookup_stays_factored_and_right(name):
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    check_law_1(LOOKUPS[name], frozen, lora)


def conv(lhs, shape, numbers, groups=1, **options):
    options = {"window_strides": (1,) * (len(shape) - 2), "padding": "SAME"} | options
    x = jax.random.normal(jax.random.key(12), lhs)

    def fn(p):
        return lax.conv_general_dilated(
            x, p["k"], dimension_numbers=numbers, feature_group_count=groups, **options
        )

    return fn, shape


CONVOLUTIONS = {
    "1 dim, torch's order": conv((2, 7, 9), (11, 7, 3), ("NCH", "OIH", "NCH")),
    "2 dims, strided": conv(
        (2, 9, 8, 7), (3, 2, 7, 11), ("NHWC", "HWIO", "NHWC"), window_strides=(2, 1)
    ),
    "2 dims, dilated": conv(
        (2, 9, 8, 7), (3, 2, 7, 11), ("NHWC", "HWIO", "NHWC"), rhs_dilation=(2, 1), padding="VALID"
    ),
    "2 dims, transposed": conv(
        (2, 5, 4, 7),
        (3, 2, 7, 11),
        ("NHWC", "HWIO", "NHWC"),
        lhs_dilation=(2, 2),
        padding=((1, 1),) * 2,
    ),
    "3 dims": conv((2, 7, 5, 4, 3), (11, 7, 3, 2, 2), ("NCHWD", "OIHWD", "NCHWD")),
    "groups": conv((2, 9, 8, 15), (3, 3, 5, 33), ("NHWC", "HWIO", "NHWC"), groups=3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_stays_factored_and_right(name):
    fn, shape = CONVOLUTIONS[name]
    params = {"k": jax.random.normal(jax.random.key(13), shape)}
    frozen, lora = adapted(params, jlora.trace_axes(fn, params), rank=2)
    check_law_1(fn, frozen, lora)


def test_a_depthwise_convolution_is_merged_because_that_is_cheaper():
    fn, shape = conv((2, 9, 8, 12), (3, 3, 1, 12), ("NHWC", "HWIO", "NHWC"), groups=12)
    params = {"k": jax.random.normal(jax.random.key(13), shape)}
    frozen, lora = adapted(params, jlora.trace_axes(fn, params), rank=2)
    report = check_law_1(fn, frozen, lora, merged=1)
    assert "depthwise" in report.uses[0].why


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_by_ragged_dot_stay_factored_and_right(transposed):
    x = jax.random.normal(jax.random.key(14), (13, 7))
    shape = (3, 11, 7) if transposed else (3, 7, 11)
    params = {"experts": jax.random.normal(jax.random.key(15), shape)}

    def fn(p):
        weight = p["experts"].swapaxes(1, 2) if transposed else p["experts"]
        return lax.ragged_dot(x, weight, jnp.array([4, 0, 9]))

    frozen, lora = adapted(params, jlora.trace_axes(fn, params), rank=2)
    check_law_1(fn, frozen, lora)


def test_two_adapted_weights_multiplied_merge_the_smaller():
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    check_law_1(lambda p: p["w"][:, :5].T @ p["v"], frozen, lora, merged=1)


def test_bfloat16_weights_under_float32_factors_stay_within_bfloat16():
    params = {"w": PARAMS["w"].astype(jnp.bfloat16)}
    frozen, lora = adapted(params)
    assert lora["w"].a.dtype == jnp.float32
    x = X.astype(jnp.bfloat16)
    got = jlora.lift(lambda p, x: x @ p["w"], strict=True)(frozen, lora, x)
    assert got.dtype == jnp.bfloat16
    exact = X.astype(jnp.bfloat16).astype(jnp.float32) @ (
        params["w"].astype(jnp.float32) + lora["w"].delta()
    )
    assert_close(got.astype(jnp.float32), exact, 2e-2)


def test_a_cast_copy_of_a_frozen_weight_is_not_kept_for_the_gradient():
    params = {"w": PARAMS["w"].astype(jnp.bfloat16)}
    frozen, lora = adapted(params)
    lifted = jlora.lift(lambda p, x: jnp.tanh(x @ p["w"].astype(jnp.float32)), strict=True)
    _, backward = jax.vjp(lambda lora, x: lifted(frozen, lora, x), lora, X)
    kept = [leaf for leaf in jax.tree.leaves(backward) if getattr(leaf, "shape", None) == (7, 11)]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


def test_the_thin_products_come_in_the_order_that_costs_least():
    params = {"w": jnp.ones((64, 64))}
    frozen, lora = adapted(params, rank=2)
    x = jax.ShapeDtypeStruct((256, 64), jnp.float32)
    compiled = jax.jit(jlora.lift(lambda p, x: x @ p["w"])).lower(frozen, lora, x).compile()
    base = 2 * 256 * 64 * 64
    thin = 2 * 256 * 2 * (64 + 64)
    assert compiled.cost_analysis()["flops"] == pytest.approx(base + thin + 256 * 64, rel=0.005)


def test_a_stack_of_no_matrices_has_no_result():
    frozen, lora = jlora.split(
        {"w": jnp.ones((0, 7, 11))},
        jlora.LoraConfig(targets="w", rank=2),
        jax.random.key(0),
        axes={"w": jlora.Axes(inputs=(1,), outputs=(2,), stack=(0,))},
    )
    lifted = jlora.lift(lambda params, x: jnp.einsum("ebtd,edf->ebtf", x, params["w"]))
    assert lifted(frozen, lora, jnp.ones((0, 2, 3, 7))).shape == (0, 2, 3, 11)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("shape", [(), (11,), (1, 11), (5, 1), (5, 11)], ids=str)
def test_what_is_added_to_a_product_may_have_any_shape(method, shape):
    params = {"w": PARAMS["w"], "added": jax.random.normal(jax.random.key(12), shape)}
    frozen, lora = adapted(params, targets="^w", method=method)

    def model(params):
        return jnp.tanh(X @ params["w"] + params["added"]), (X @ params["w"] + params["added"]).T

    check_law_1(model, frozen, lora, factored=2)
