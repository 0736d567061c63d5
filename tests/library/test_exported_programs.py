"""A lifted program exports with the batch as a symbol, and is read again."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from every_kind import IDS, KEY, LORA, OTHER, PARAMS, lifted, model, normal
from jax import export, lax
from laws import adapted, assert_close

import jlora


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(nn.tanh(nn.Dense(11)(x)))


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(nn.tanh(nn.Conv(9, (3, 2), strides=(2, 1))(x)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(3, qkv_features=6)(x)


def linen(module, *shape):
    params = jax.jit(module.init)(KEY, jnp.ones((1, *shape)))
    biased = jax.tree.map(lambda leaf: leaf + 0.1, params)
    return module.apply, biased, shape, "float32"


def scanned(p, x):
    def layer(x, layer):
        return jnp.tanh(x @ layer["w"] + layer["b"]), None

    return lax.scan(layer, x, p)[0]


def tied(p, ids):
    return jnp.tanh(p["table"][ids]) @ p["table"].T


MODELS = {  # the function, its parameters, the input's shape without the batch, its dtype
    "products": (
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
        {"w": normal(7, 11), "v": normal(11, 5)},
        (7,),
        "float32",
    ),
    "products over a length": (
        lambda p, x: jnp.einsum("...i,oi->...o", x, p["w"]) + p["b"],
        {"w": normal(11, 7), "b": normal(11)},
        (6, 7),
        "float32",
    ),
    "biases": linen(Dense(), 7),
    "a scan": (scanned, {"w": normal(3, 7, 7) / 3, "b": normal(3, 7)}, (7,), "float32"),
    "a lookup": (tied, {"table": normal(13, 7)}, (6,), "int32"),
    "a convolution": linen(Convolution(), 6, 5, 3),
    "attention": linen(Attention(), 6, 7),
}


def through_a_file(fn, *args, derivatives=0):
    """The function exported for these shapes, written and read again."""
    written = export.export(jax.jit(fn))(*args).serialize(vjp_order=derivatives)
    return export.deserialize(written).call


def check_exported(call, fn, frozen, lora, *inputs):
    """Law 1 of an exported program, at these inputs."""
    whole = jax.jit(lambda frozen, lora, x: fn(jlora.merge(frozen, lora), x))
    for x in inputs:
        assert_close(call(frozen, lora, x), whole(frozen, lora, x), 1e-4)


def an_input(shape, dtype):
    if dtype == "int32":
        return jax.random.randint(KEY, shape, 0, 13)
    return jax.random.normal(KEY, shape)


def split_for(name, method, **options):
    fn, params, shape, dtype = MODELS[name]
    axes = jlora.trace_axes(fn, params, an_input((2, *shape), dtype))
    targets = "kernel|table|w|v"
    return fn, *adapted(params, axes, targets=targets, method=method, **options), shape, dtype


def check_at_every_batch(name, method):
    fn, frozen, lora, shape, dtype = split_for(name, method, rank=3)
    [batch] = export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, inputs)
    check_exported(call, fn, frozen, lora, *(an_input((n, *shape), dtype) for n in (1, 5)))


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "lora") for name in MODELS), ("a scan", "dora")]
)
def test_an_exported_program_is_the_lifted_one_at_every_batch(name, method):
    """DoRA on each of them: tests/wide."""
    check_at_every_batch(name, method)


def test_a_convolution_that_may_cost_less_merged_exports_too():
    ranks = {"Conv": 9, "Dense": 2}
    fn, frozen, lora, shape, dtype = split_for("a convolution", "lora", rank_pattern=ranks)
    [batch] = export.symbolic_shape("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jlora.MaterialisedWarning)
        inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
        call = through_a_file(jlora.lift(fn), frozen, lora, inputs)
    check_exported(call, fn, frozen, lora, *(an_input((n, *shape), dtype) for n in (1, 9)))


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_without_a_size_is_enough_to_trace_axes_and_to_explain(name):
    fn, frozen, lora, shape, dtype = split_for(name, "lora", rank=3)
    [batch] = export.symbolic_shape("batch")
    symbolic = jax.ShapeDtypeStruct((batch, *shape), dtype)
    x = an_input((2, *shape), dtype)
    assert jlora.trace_axes(fn, frozen, symbolic) == jlora.trace_axes(fn, frozen, x)
    got, want = (jlora.explain(fn, frozen, lora, each) for each in (symbolic, x))
    assert [(use.path, use.operation) for use in got.uses] == [
        (use.path, use.operation) for use in want.uses
    ]
    assert got.materialised == want.materialised == 0
    assert all(path in str(got) for path in lora)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_exported_program_of_fixed_sizes_is_the_lifted_one(method):
    fn, frozen, lora, shape, dtype = split_for("biases", method, rank=3)
    x = an_input((4, *shape), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, x)
    check_exported(call, fn, frozen, lora, x)


@pytest.mark.parametrize("name", ["products", "biases", "products over a length"])
def test_a_rank_at_which_the_batch_decides_what_is_cheapest_exports_too(name):
    """x A B costs less than x (A B) for few rows alone."""
    fn, frozen, lora, shape, dtype = split_for(name, "lora", rank=5)
    [batch] = export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, inputs)
    check_exported(call, fn, frozen, lora, *(an_input((n, *shape), dtype) for n in (1, 64)))


def test_a_batch_and_a_length_are_symbols_of_their_own():
    fn, frozen, lora, (_, width), dtype = split_for("attention", "lora", rank=2)
    batch, length = export.symbolic_shape("batch, length")
    inputs = jax.ShapeDtypeStruct((batch, length, width), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, inputs)
    check_exported(
        call, fn, frozen, lora, *(an_input((*sizes, width), dtype) for sizes in ((1, 1), (2, 9)))
    )


def test_a_program_with_every_kind_of_node_exports():
    [batch] = export.symbolic_shape("batch")
    call = through_a_file(lifted, PARAMS, LORA, jax.ShapeDtypeStruct((batch, 4), "int32"))
    for lora in (LORA, OTHER):
        check_exported(call, model, PARAMS, lora, IDS)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_exported_program_has_the_gradients_of_the_lifted_one(method):
    fn, frozen, lora, shape, dtype = split_for("biases", method, rank=3)
    [batch] = export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, inputs, derivatives=1)
    x = an_input((4, *shape), dtype)
    got = jax.jit(jax.grad(lambda lora: (call(frozen, lora, x) ** 2).mean()))(lora)
    want = jax.jit(jax.grad(lambda lora: (fn(jlora.merge(frozen, lora), x) ** 2).mean()))(lora)
    assert_close(got, want, 1e-4)
