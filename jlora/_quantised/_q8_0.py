"""Q8_0: 32 numbers of 8 bits and their scale, ``w = d q``."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._quantised._block_format import BlockFormat, bytes_of_halves, halves, over


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    return (halves(data[..., :2]) * lax.bitcast_convert_type(data[..., 2:], jnp.int8)).astype(dtype)


def _encode(blocks: jax.Array) -> jax.Array:
    d = jnp.abs(blocks).max(axis=-1, keepdims=True) / 127
    scaled = over(blocks, d)
    q = jnp.sign(scaled) * jnp.floor(jnp.abs(scaled) + 0.5)  # halves go away from zero
    q = lax.bitcast_convert_type(q.astype(jnp.int8), jnp.uint8)
    return jnp.concatenate([bytes_of_halves(d), q], axis=-1)


Q8_0 = BlockFormat("Q8_0", 32, 34, _decode, _encode)
