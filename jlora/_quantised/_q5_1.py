"""Q5_1: 32 numbers of 5 bits, their scale and their minimum, ``w = d q + m``."""

from typing import Any

import jax
import jax.numpy as jnp

from jlora._quantised._block_format import (
    BlockFormat,
    bytes_of_bits,
    bytes_of_halves,
    bytes_of_nibbles,
    halves,
    nibbles,
    over,
    side_by_side,
)
from jlora._quantised._q5_0 import with_fifth_bits


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    d, m = jnp.split(halves(data[..., :4]), 2, axis=-1)
    q = with_fifth_bits(nibbles(data[..., 8:]), data[..., 4:8])
    return side_by_side((d * part.astype(jnp.float32) + m for part in q), dtype)


def _encode(blocks: jax.Array) -> jax.Array:
    m = blocks.min(axis=-1, keepdims=True)
    d = (blocks.max(axis=-1, keepdims=True) - m) / 31
    q = jnp.clip(jnp.floor(over(blocks - m, d) + 0.5), 0, 31).astype(jnp.uint8)
    low, high = bytes_of_nibbles(q & 15), bytes_of_bits(q >> 4)
    return jnp.concatenate([bytes_of_halves(d), bytes_of_halves(m), high, low], axis=-1)


Q5_1 = BlockFormat("Q5_1", 32, 24, _decode, _encode)
