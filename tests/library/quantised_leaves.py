"""Quantised leaves of random bytes, a small model of them, and the law that holds over them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from laws import assert_close, trained

import jlora
from jlora._quantised import BLOCKS, FORMATS, WRITTEN, BlockWeight, FourBitWeight, Fp8Weight

DRAW = np.random.default_rng(0)
# where the high byte of each half-precision number of a block of a K format stands
_HALVES = {"Q4_K": (1, 3), "Q5_K": (1, 3), "Q6_K": (209,)}


def random_blocks(name, *before):
    """uint8 (*before, bytes): any bytes, but half-precision numbers are finite and small."""
    data = DRAW.integers(0, 256, (*before, BLOCKS[name].size), dtype=np.uint8)
    for at in _HALVES.get(name, ()):
        data[..., at] = data[..., at] & 0x83 | 0x10
    if name == "MXFP4":
        data[..., 0] = data[..., 0] % 8 + 120  # an exponent
    return data


# Formats, and the other ways in which files have them.
KINDS = (*FORMATS, "nf4, scales as they are", "nf4 across rows")


def four_bits(name, shape, axes, dtype):
    """Random numbers of fp4, or of nf4 as bitsandbytes has it where rows are no whole blocks."""
    flat = nested = name == "nf4 across rows"
    stack, *sizes = (
        tuple(shape[dim] for dim in dims) for dims in (axes.stack, axes.outputs, axes.inputs)
    )
    before, length = ((), math.prod(sum(sizes, ()))) if flat else (sizes[0], math.prod(sizes[1]))
    blocks = -(-length // 64)
    count = math.prod(before) * blocks
    codes = DRAW.integers(0, 256, (*stack, *before, blocks * 32), dtype=np.uint8)
    scales = DRAW.uniform(0.5, 2, (*stack, *before, blocks)).astype("f")
    more = (None, None)
    if nested:
        scales = DRAW.integers(0, 256, scales.shape, dtype=np.uint8)
        most = DRAW.uniform(0.1, 0.5, (*stack, -(-count // 256))).astype("f")
        more = (jnp.asarray(most), jnp.asarray(DRAW.uniform(1, 2, stack).astype("f")))
    arrays = (jnp.asarray(codes), jnp.asarray(scales), *more)
    return FourBitWeight(*arrays, tuple(shape), jnp.dtype(dtype), axes, name[:3], flat=flat)


def fp8(shape, axes, dtype):
    """Random numbers in blocks of 3 x 5."""
    stack, rows, columns = (
        tuple(shape[dim] for dim in dims) for dims in (axes.stack, axes.outputs, axes.inputs)
    )
    values = DRAW.normal(size=(*stack, *rows, *columns)).astype(jnp.float8_e4m3fn).view("u1")
    counts = (-(-math.prod(rows) // 3), -(-math.prod(columns) // 5))
    scale = DRAW.uniform(0.5, 2, (*stack, *counts)).astype("f")
    arrays = (jnp.asarray(values), jnp.asarray(scale))
    return Fp8Weight(*arrays, tuple(shape), jnp.dtype(dtype), axes, (3, 5))


def leaf_of(name, shape, axes, dtype="float32"):
    """A leaf in the place of a weight of this shape: of a normal one, or of random bytes."""
    if name in WRITTEN:
        return FORMATS[name].encoded(jnp.asarray(DRAW.normal(size=shape), dtype), axes, name)
    if name == "fp4" or name.startswith("nf4"):
        return four_bits(name, shape, axes, dtype)
    if name == "fp8":
        return fp8(shape, axes, dtype)
    before = [shape[dim] for dim in (*axes.stack, *axes.outputs)]
    length = int(np.prod([shape[dim] for dim in axes.inputs]))
    data = random_blocks(name, *before, -(-length // BLOCKS[name].block))
    data = jnp.asarray(data.reshape(*before, -1))
    return BlockWeight(data, tuple(shape), jnp.dtype(dtype), axes, name)


TOKENS = jnp.array([[1, 5, 1], [12, 0, 3]])
SHAPES = {"up": (3, 8, 12), "down": (3, 12, 8), "table": (16, 8), "head": (8, 5)}
AXES = {
    "up": jlora.Axes((1,), (2,), (0,)),
    "down": jlora.Axes((1,), (2,), (0,)),
    "table": jlora.Axes((1,), (0,)),
    "head": jlora.Axes(),
}


def model(p, tokens):
    def layer(x, weights):
        up, down = weights
        return x + jnp.tanh(x @ up) @ down, None

    x, _ = lax.scan(jax.checkpoint(layer), p["table"][tokens] / 3, (p["up"], p["down"]))
    scores = x @ p["table"].T
    return scores, x @ p["head"], x @ p["up"][1], (p["head"].T @ x[0].T).T


@functools.cache
def small_and_plain(name):
    small = {path: leaf_of(name, SHAPES[path], AXES[path]) for path in SHAPES}
    plain = jlora.dequantize(small)
    assert all(bool(jnp.isfinite(array).all()) for array in plain.values())
    return small, plain


def lifted_over_both(name, method):
    """The value, the gradient and the merge over quantised weights are those over plain ones."""
    small, plain = small_and_plain(name)
    axes = jlora.trace_axes(model, plain, TOKENS)
    assert jlora.trace_axes(model, small, TOKENS) == axes
    config = jlora.LoraConfig(targets="up|down|head|table", rank=2, alpha=5.0, method=method)
    frozen, lora = jlora.split(small, config, jax.random.key(0), axes=axes)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, frozen, small)))
    lora = trained(lora)
    both = jlora.lift(model, strict=True)

    def loss(lora, frozen):
        return sum(jnp.square(out / 10).mean() for out in both(frozen, lora, TOKENS))

    step = jax.jit(lambda *bases: [jax.value_and_grad(loss)(lora, base) for base in bases])
    got, want = step(small, plain)
    assert_close(got, want, 1e-4)
    assert_close(jlora.merge(small, lora), jlora.merge(plain, lora), 1e-6)
    report = jlora.explain(model, small, lora, TOKENS)
    assert (report.materialised, report.unused) == (0, ())


def one_layer_at_a_time(name):
    """The gradient of a loop over layers never has two of them decoded, and keeps none."""
    layers, width = 16, 256
    axes = {"w": jlora.Axes((1,), (2,), (0,))}
    frozen = {"w": leaf_of(name, (layers, width, width), axes["w"])}
    config = jlora.LoraConfig(targets="w", rank=2)
    _, lora = jlora.split(frozen, config, jax.random.key(0), axes=axes)
    x = jnp.ones((4, width)) / 100

    def loss(p, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w / 100), None), x, p["w"])[0].sum()

    lifted = jlora.lift(loss, strict=True)
    grad = jax.jit(jax.grad(lifted, argnums=1))
    one = width * width * 4
    lowered = grad.lower(frozen, lora, x)
    assert len(lowered.as_text()) < 100_000  # no stored array is a constant of the program
    compiled = lowered.compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4.5 * one  # of 16 layers
    kept = jax.tree.leaves(jax.eval_shape(lambda lora: jax.vjp(lifted, frozen, lora, x)[1], lora))
    stored = frozen["w"].nbytes
    assert sum(math.prod(each.shape) * each.dtype.itemsize for each in kept) < stored + 4 * one
    plain = jlora.dequantize(frozen)
    both = (compiled, grad.lower(plain, lora, x).compile())
    flops = [program.cost_analysis()["flops"] for program in both]
    decoding = 2 * layers * width * width  # forward and backward
    assert flops[1] <= flops[0] < flops[1] + 12 * decoding
