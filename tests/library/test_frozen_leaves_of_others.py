"""Frozen leaves that are no arrays are what they stand for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from laws import adapted, assert_close, trained
from quantised_leaves import TOKENS
from quantised_leaves import model as small_model

import jlora
from jlora import extend
from jlora.extend import RANK, Factor

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8(extend.FrozenLeaf):
    """A weight in 8 bits, with a scale for each entry along its last dimension and its stack."""

    values: jax.Array  # int8, in the weight's shape
    scale: jax.Array  # over all dimensions but the inputs' (the last but one)
    shape: tuple = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(default="float32", metadata={"static": True})

    @classmethod
    def of(cls, weight):
        scale = jnp.abs(weight).max(-2) / 127
        values = jnp.round(weight / scale[..., None, :]).astype(jnp.int8)
        return cls(values, scale, weight.shape)

    def dimensions(self):
        dims = tuple(range(len(self.shape)))
        return {"values": dims, "scale": (*dims[:-2], dims[-1])}

    @property
    def separable(self):
        return tuple(range(len(self.shape)))  # the scale says the same along the inputs

    def plain(self):
        return self.values.astype(self.dtype) * self.scale[..., None, :].astype(self.dtype)

    def multiply(self, product, *operands, kept):
        dims = self.dimensions()["scale"]
        if not {dim for dim in dims if self.shape[dim] != 1} <= set(kept):
            return super().multiply(product, *operands, kept=kept)
        result = product(self.values.astype(self.dtype), *operands)
        return result * extend.along(Factor(self.scale, dims), kept).astype(result.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks(extend.FrozenLeaf):
    """Blocks of 4 along the inputs share a scale; only layers can be taken apart."""

    codes: jax.Array  # int8 (*stack, in / 4, 4, out)
    scale: jax.Array  # (*stack, in / 4, out)
    shape: tuple = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(default="float32", metadata={"static": True})

    @classmethod
    def of(cls, weight):
        *stack, inputs, outputs = weight.shape
        blocks = weight.reshape(*stack, inputs // 4, 4, outputs)
        scale = jnp.abs(blocks).max(-2) / 7
        codes = jnp.round(blocks / scale[..., None, :]).astype(jnp.int8)
        return cls(codes, scale, weight.shape)

    def dimensions(self):
        stack, last = tuple(range(len(self.shape) - 2)), len(self.shape) - 1
        return {"codes": (*stack, RANK, RANK, last), "scale": (*stack, RANK, last)}

    def plain(self):
        return (self.codes * self.scale[..., None, :]).reshape(self.shape).astype(self.dtype)


WIDE = {
    "up": normal(3, 8, 12),
    "down": normal(3, 12, 8, seed=1),
    "table": normal(16, 8, seed=3),
    "head": normal(8, 5, seed=4),
}


@functools.cache
def small_and_plain(kind):
    """The weights as small leaves, and what these stand for."""
    small = jax.jit(lambda: jax.tree.map(kind.of, WIDE))()
    decoded = jax.jit(lambda: {path: leaf.plain() for path, leaf in small.items()})()
    return small, decoded


@pytest.mark.parametrize("kind", [Int8, Blocks])
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("targets", ["up|down|head|table", "up"])
def test_lifted_over_small_leaves_is_lifted_over_what_they_stand_for(kind, method, targets):
    axes = jlora.trace_axes(small_model, WIDE, TOKENS)
    small, plain = small_and_plain(kind)
    assert jlora.trace_axes(small_model, small, TOKENS) == axes
    config = jlora.LoraConfig(targets=targets, rank=2, alpha=5.0, method=method)
    frozen, lora = jlora.split(small, config, KEY, axes=axes)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, frozen, small)))
    _, same = jlora.split(plain, config, KEY, axes=axes)
    assert_close(lora, same, 1e-6)
    lora = trained(lora)
    both = jlora.lift(small_model, strict=True)

    def loss(lora, frozen):
        return sum((jnp.cos(out) * out).sum() for out in both(frozen, lora, TOKENS))

    step = jax.jit(lambda *bases: [jax.value_and_grad(loss)(lora, base) for base in bases])
    got, want = step(small, plain)
    assert_close(got, want, 1e-4)
    merged = jlora.merge(small, lora)
    for path in WIDE:
        if path in lora:
            assert_close(merged[path], jlora.merge(plain, lora)[path], 1e-6)
        else:
            assert merged[path] is small[path]
    report = jlora.explain(small_model, small, lora, TOKENS)
    assert report.materialised == 0
    assert report.unused == ()


@pytest.mark.parametrize("kind", [Int8, Blocks])
def test_starts_from_data_read_small_leaves(kind):
    params = {"up": normal(8, 12), "down": normal(12, 5, seed=1)}
    small = jax.tree.map(kind.of, params)
    plain = {path: leaf.plain() for path, leaf in small.items()}
    config = jlora.LoraConfig(targets="up|down", rank=2)
    batches = [normal(20, 8, seed=2)]

    def fn(p, x):
        return jnp.tanh(x @ p["up"]) @ p["down"]

    def loss(p, x):
        return (fn(p, x) ** 2).mean()

    lora = jlora.split(params, config, KEY)[1]
    moved, started, _ = jlora.lora_ga(loss, small, lora, batches, config, KEY)
    assert_close(moved, jlora.lora_ga(loss, plain, lora, batches, config, KEY)[0], 1e-5)
    assert_close(jlora.merge(moved, started), plain, 1e-5)
    kept, eva, _ = jlora.eva(fn, small, lora, batches, config, KEY)
    assert kept is small
    assert_close(eva, jlora.eva(fn, plain, lora, batches, config, KEY)[1], 1e-4)


def test_a_small_leaf_is_decoded_where_an_operation_needs_the_weight():
    small = {"w": Int8.of(normal(8, 6))}
    fn = lambda p: jnp.tanh(p["w"])  # noqa: E731
    assert_close(jlora.lift(fn)(small, {}), jnp.tanh(small["w"].plain()))
    _, lora = adapted({"w": small["w"].plain()})
    with pytest.warns(jlora.MaterialisedWarning):
        got = jlora.lift(fn)(small, lora)
    assert_close(got, jnp.tanh(jlora.merge(small, lora)["w"]))


def test_layers_of_small_leaves_are_decoded_one_at_a_time(compiled_as_ever):
    weights = {"w": normal(16, 96, 96)}
    axes = {"w": jlora.Axes((1,), (2,), (0,))}
    x = normal(4, 96)

    def loss(p, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0].sum()

    _, lora = adapted(weights, axes, rank=2)
    for kind in (Int8, Blocks):
        frozen = jax.tree.map(kind.of, weights)
        grad = jax.jit(jax.grad(jlora.lift(loss, strict=True), argnums=1))
        compiled = grad.lower(frozen, lora, x).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 6 * 96 * 96 * 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Half(extend.FrozenLeaf):
    """Its shape is read off its array, which in a step of a scan lacks an axis."""

    kept: jax.Array

    dtype = jnp.dtype("float32")
    shape = property(lambda self: self.kept.shape)

    def dimensions(self):
        return {"kept": tuple(range(len(self.kept.shape)))}

    def plain(self):
        return self.kept.astype(self.dtype)


def scanned(params, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w.T), None), x, params["layers"])[0]


def test_over_a_leaf_without_a_shape_of_its_own_a_scan_is_as_over_the_plain_weight():
    layers = jax.random.normal(jax.random.key(0), (3, 7, 7)) / 3
    x = jax.random.normal(jax.random.key(1), (5, 7))
    small = {"layers": Half(layers.astype("float16"))}
    plain = {"layers": small["layers"].plain()}
    config = jlora.LoraConfig(targets="layers", rank=2)
    axes = jlora.trace_axes(scanned, plain, x)
    frozen, lora = jlora.split(small, config, jax.random.key(2), axes=axes)
    lora = jax.tree.map(lambda leaf: leaf + 0.1, lora)
    apply = jlora.lift(scanned, strict=True)

    def loss(lora, base):
        return jnp.square(apply(base, lora, x)).sum()

    assert_close(loss(lora, frozen), loss(lora, plain), 1e-5)
    assert_close(jax.grad(loss)(lora, frozen), jax.grad(loss)(lora, plain), 1e-4)
