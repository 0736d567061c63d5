"""Q6_K: 256 numbers of 6 bits, a scale of 8 bits for each 16 of them, ``w = d scale (q - 32)``."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._quantised._block_format import BlockFormat, halves, nibbles, side_by_side


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    first = data.shape[:-1]
    scale = lax.bitcast_convert_type(data[..., 192:208], jnp.int8).astype(jnp.float32)
    d = (halves(data[..., 208:]) * scale).reshape(*first, 2, 2, 4, 1)
    # each half of the block: 4 parts of 32 numbers, whose low bits share 64 bytes and whose pairs
    # of high bits share 32
    low = nibbles(data[..., :128].reshape(*first, 2, 2, 32))
    high = data[..., 128:192].reshape(*first, 2, 1, 32)
    shifts = jnp.arange(0, 8, 2, dtype=jnp.uint8).reshape(2, 2, 1)

    def decoded(at: int) -> jax.Array:
        q = (low[at] | (((high >> shifts[at]) & 3) << 4)).astype(jnp.float32) - 32
        return (d[..., at, :, :] * q.reshape(*first, 2, 4, 16)).reshape(*first, 2, 64)

    return side_by_side(map(decoded, (0, 1)), dtype).reshape(*first, 256)


Q6_K = BlockFormat("Q6_K", 256, 210, _decode)
