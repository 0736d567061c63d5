"""Q4_1: 32 numbers of 4 bits, their scale and their minimum, ``w = d q + m``."""

from typing import Any

import jax
import jax.numpy as jnp

from jlora._quantised._block_format import (
    BlockFormat,
    bytes_of_halves,
    bytes_of_nibbles,
    halves,
    nibbles,
    over,
    side_by_side,
)


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    d, m = jnp.split(halves(data[..., :4]), 2, axis=-1)
    return side_by_side((d * q.astype(jnp.float32) + m for q in nibbles(data[..., 4:])), dtype)


def _encode(blocks: jax.Array) -> jax.Array:
    m = blocks.min(axis=-1, keepdims=True)
    d = (blocks.max(axis=-1, keepdims=True) - m) / 15
    q = jnp.clip(jnp.floor(over(blocks - m, d) + 0.5), 0, 15).astype(jnp.uint8)
    return jnp.concatenate([bytes_of_halves(d), bytes_of_halves(m), bytes_of_nibbles(q)], axis=-1)


Q4_1 = BlockFormat("Q4_1", 32, 20, _decode, _encode)
