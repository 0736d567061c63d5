"""Quantised leaves of random bytes, for tests that read them."""

import jax.numpy as jnp
import numpy as np

from jlora._quantised import BLOCKS, FORMATS, WRITTEN, BlockWeight

DRAW = np.random.default_rng(0)
# where the high byte of each half-precision number of a block of a K format stands
_HALVES = {"Q4_K": (1, 3), "Q5_K": (1, 3), "Q6_K": (209,)}


def random_blocks(name, *before):
    """uint8 (*before, bytes): any bytes, but half-precision numbers are finite and small."""
    data = DRAW.integers(0, 256, (*before, BLOCKS[name].size), dtype=np.uint8)
    for at in _HALVES.get(name, ()):
        data[..., at] = data[..., at] & 0x83 | 0x10
    return data


def leaf_of(name, shape, axes, dtype="float32"):
    """A leaf in the place of a weight of this shape: of a normal one, or of random bytes."""
    if name in WRITTEN:
        return FORMATS[name].encoded(jnp.asarray(DRAW.normal(size=shape), dtype), axes, name)
    before = [shape[dim] for dim in (*axes.stack, *axes.outputs)]
    length = int(np.prod([shape[dim] for dim in axes.inputs]))
    data = random_blocks(name, *before, -(-length // BLOCKS[name].block))
    data = jnp.asarray(data.reshape(*before, -1))
    return BlockWeight(data, tuple(shape), jnp.dtype(dtype), axes, name)
