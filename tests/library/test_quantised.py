"""Over quantised weights everything is as over the weights that they stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from laws import assert_close, trained

import jlora
from jlora._quantised import BLOCKS, FORMATS, WRITTEN, BlockWeight

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def random_blocks(name, *before):
    """Bytes of whole blocks whose halves are small finite numbers."""
    its = BLOCKS[name]
    data = DRAW.integers(0, 256, (*before, its.size), dtype=np.uint8)
    for at in {"Q4_K": (1, 3), "Q5_K": (1, 3), "Q6_K": (209,)}.get(name, ()):
        data[..., at] = data[..., at] & 0x83 | 0x10  # an exponent far below the largest
    return data


def stored(name, shape, axes, dtype="float32"):
    """A leaf with random bytes in the place of a weight of this shape."""
    if name in WRITTEN:
        weight = jnp.asarray(DRAW.normal(size=shape), dtype)
        return FORMATS[name].encoded(weight, axes, name)
    before = [shape[dim] for dim in (*axes.stack, *axes.outputs)]
    length = int(np.prod([shape[dim] for dim in axes.inputs]))
    data = random_blocks(name, *before, -(-length // BLOCKS[name].block))
    data = data.reshape(*data.shape[:-2], -1)
    return BlockWeight(jnp.asarray(data), shape, jnp.dtype(dtype), axes, name)


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
    small = {path: stored(name, SHAPES[path], AXES[path]) for path in SHAPES}
    scaled = {path: jnp.abs(leaf.plain()).max() for path, leaf in small.items()}
    assert all(jnp.isfinite(most) for most in scaled.values()), scaled
    return small, jlora.dequantize(small)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_lifted_over_quantised_weights_is_lifted_over_what_they_stand_for(name, method):
    small, plain = small_and_plain(name)
    axes = jlora.trace_axes(model, plain, TOKENS)
    assert jlora.trace_axes(model, small, TOKENS) == axes
    config = jlora.LoraConfig(targets="up|down|head|table", rank=2, alpha=5.0, method=method)
    frozen, lora = jlora.split(small, config, KEY, axes=axes)
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
