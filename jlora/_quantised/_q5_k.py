"""Q5_K: as Q4_K, with a fifth bit of each number: bit n of byte i is that of number i of part n."""

from typing import Any

import jax
import jax.numpy as jnp

from jlora._quantised._block_format import BlockFormat, nibbles
from jlora._quantised._q4_k import in_turns, scales_and_minima


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    d, m = scales_and_minima(data[..., :16])
    high = (data[..., None, 16:48] >> jnp.arange(8, dtype=jnp.uint8)[:, None]) & 1
    pairs = nibbles(data[..., 48:].reshape(*data.shape[:-1], 4, 32))
    q = [low | (high[..., at::2, :] << 4) for at, low in enumerate(pairs)]
    return in_turns(d, m, q, dtype)


Q5_K = BlockFormat("Q5_K", 256, 176, _decode)
