"""Q5_K: as Q4_K, with a fifth bit of each number: bit n of byte i is that of number i of part n."""

import jax
import jax.numpy as jnp

from jlora._quantised._block_format import BlockFormat
from jlora._quantised._q4_k import parts, scales_and_minima


def _decode(data: jax.Array) -> jax.Array:
    d, m = scales_and_minima(data[..., :16])
    high = (data[..., None, 16:48] >> jnp.arange(8, dtype=jnp.uint8)[:, None]) & 1
    q = (parts(data[..., 48:]) | (high << 4)).astype(jnp.float32)
    return (d[..., None] * q - m[..., None]).reshape(*data.shape[:-1], 256)


Q5_K = BlockFormat("Q5_K", 256, 176, _decode)
