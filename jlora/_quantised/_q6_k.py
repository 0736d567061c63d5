"""Q6_K: 256 numbers of 6 bits, a scale of 8 bits for each 16 of them, ``w = d scale (q - 32)``."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._quantised._block_format import BlockFormat, halves


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    first = data.shape[:-1]
    # each half of the block has 64 bytes of low nibbles and 32 of pairs of high bits
    low = data[..., :128].reshape(*first, 2, 1, 64)
    low = jnp.concatenate([low & 15, low >> 4], axis=-2).reshape(*first, 2, 4, 32)
    high = data[..., 128:192].reshape(*first, 2, 1, 32)
    high = (high >> jnp.arange(0, 8, 2, dtype=jnp.uint8)[:, None]) & 3
    q = (low | (high << 4)).astype(jnp.float32) - 32
    scale = lax.bitcast_convert_type(data[..., 192:208], jnp.int8).astype(jnp.float32)
    d = halves(data[..., 208:]) * scale
    return (d[..., None] * q.reshape(*first, 16, 16)).reshape(*first, 256).astype(dtype)


Q6_K = BlockFormat("Q6_K", 256, 210, _decode)
