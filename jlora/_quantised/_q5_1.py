"""Q5_1: 32 numbers of 5 bits, their scale and their minimum, ``w = d q + m``."""

from typing import Any

import jax
import jax.numpy as jnp

from jlora._quantised._block_format import (
    BlockFormat,
    bits,
    bytes_of_bits,
    bytes_of_halves,
    bytes_of_nibbles,
    halves,
    nibbles,
    over,
)


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    d, m = jnp.split(halves(data[..., :4]), 2, axis=-1)
    q = nibbles(data[..., 8:]) | (bits(data[..., 4:8]) << 4)
    return (d * q.astype(jnp.float32) + m).astype(dtype)


def _encode(blocks: jax.Array) -> jax.Array:
    m = blocks.min(axis=-1, keepdims=True)
    d = (blocks.max(axis=-1, keepdims=True) - m) / 31
    q = jnp.clip(jnp.floor(over(blocks - m, d) + 0.5), 0, 31).astype(jnp.uint8)
    low, high = bytes_of_nibbles(q & 15), bytes_of_bits(q >> 4)
    return jnp.concatenate([bytes_of_halves(d), bytes_of_halves(m), high, low], axis=-1)


Q5_1 = BlockFormat("Q5_1", 32, 24, _decode, _encode)
