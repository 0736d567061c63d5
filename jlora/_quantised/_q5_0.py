"""Q5_0: 32 numbers of 5 bits and their scale, ``w = d (q - 16)``; the scale may be negative."""

from typing import Any

import jax
import jax.numpy as jnp

from jlora._quantised._block_format import (
    BlockFormat,
    bits,
    bytes_of_bits,
    bytes_of_halves,
    bytes_of_nibbles,
    farthest,
    halves,
    nibbles,
    over,
)


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    q = nibbles(data[..., 6:]) | (bits(data[..., 2:6]) << 4)
    return (halves(data[..., :2]) * (q.astype(jnp.float32) - 16)).astype(dtype)


def _encode(blocks: jax.Array) -> jax.Array:
    d = farthest(blocks) / -16
    q = jnp.clip(jnp.floor(over(blocks, d) + 16.5), 0, 31).astype(jnp.uint8)
    low, high = bytes_of_nibbles(q & 15), bytes_of_bits(q >> 4)
    return jnp.concatenate([bytes_of_halves(d), high, low], axis=-1)


Q5_0 = BlockFormat("Q5_0", 32, 22, _decode, _encode)
