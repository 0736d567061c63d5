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
    side_by_side,
)


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    d = halves(data[..., :2])
    q = with_fifth_bits(nibbles(data[..., 6:]), data[..., 2:6])
    return side_by_side((d * (part.astype(jnp.float32) - 16) for part in q), dtype)


def with_fifth_bits(
    low: tuple[jax.Array, jax.Array], fifth: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Numbers of 5 bits of the 16 low and the 16 high halves of bytes: (..., 4) bytes more."""
    return low[0] | (bits(fifth[..., :2]) << 4), low[1] | (bits(fifth[..., 2:]) << 4)


def _encode(blocks: jax.Array) -> jax.Array:
    d = farthest(blocks) / -16
    q = jnp.clip(jnp.floor(over(blocks, d) + 16.5), 0, 31).astype(jnp.uint8)
    low, high = bytes_of_nibbles(q & 15), bytes_of_bits(q >> 4)
    return jnp.concatenate([bytes_of_halves(d), high, low], axis=-1)


Q5_0 = BlockFormat("Q5_0", 32, 22, _decode, _encode)
