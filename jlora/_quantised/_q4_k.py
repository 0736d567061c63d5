"""Q4_K: 256 numbers of 4 bits in 8 parts; scales and minima of the parts have 6 bits each."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jlora._quantised._block_format import BlockFormat, halves, nibbles, side_by_side


def scales_and_minima(data: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each part ``d * scale`` and ``dmin * minimum``, float32 (..., 8), of a block's 16 bytes.

    The first four of each have 6 bits of a byte of their own; of the others the low 4 bits share a
    byte and the high 2 bits are those that the first ones left over.
    """
    both = halves(data[..., :4])
    first, second, third = (data[..., 4 + 4 * at : 8 + 4 * at] for at in range(3))
    scales = [first & 63, (third & 15) | ((first >> 6) << 4)]
    minima = [second & 63, (third >> 4) | ((second >> 6) << 4)]
    scale, minimum = (
        jnp.concatenate(each, axis=-1).astype(jnp.float32) for each in (scales, minima)
    )
    return both[..., :1] * scale, both[..., 1:] * minimum


def in_turns(d: jax.Array, m: jax.Array, parts: Iterable[jax.Array], dtype: Any) -> jax.Array:
    """(..., 256) ``d q - m``, of parts 0, 2, 4, 6 and parts 1, 3, 5, 7: each (..., 4, 32) uint8."""
    decoded = (
        d[..., at::2, None] * q.astype(jnp.float32) - m[..., at::2, None]
        for at, q in enumerate(parts)
    )
    return side_by_side(decoded, dtype).reshape(*d.shape[:-1], 256)


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    d, m = scales_and_minima(data[..., :16])
    # each 32 bytes hold one part low and the next one high
    pairs = data[..., 16:].reshape(*data.shape[:-1], 4, 32)
    return in_turns(d, m, nibbles(pairs), dtype)


Q4_K = BlockFormat("Q4_K", 256, 144, _decode)
