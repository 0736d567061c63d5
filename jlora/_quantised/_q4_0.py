"""Q4_0: 32 numbers of 4 bits and their scale, ``w = d (q - 8)``; the scale may be negative."""

from typing import Any

import jax
import jax.numpy as jnp

from jlora._quantised._block_format import (
    BlockFormat,
    bytes_of_halves,
    bytes_of_nibbles,
    farthest,
    halves,
    nibbles,
    over,
    side_by_side,
)


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    d = halves(data[..., :2])
    return side_by_side((d * (q.astype(jnp.float32) - 8) for q in nibbles(data[..., 2:])), dtype)


def _encode(blocks: jax.Array) -> jax.Array:
    d = farthest(blocks) / -8
    q = jnp.clip(jnp.floor(over(blocks, d) + 8.5), 0, 15).astype(jnp.uint8)
    return jnp.concatenate([bytes_of_halves(d), bytes_of_nibbles(q)], axis=-1)


Q4_0 = BlockFormat("Q4_0", 32, 18, _decode, _encode)
