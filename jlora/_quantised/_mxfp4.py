"""MXFP4: 32 numbers of 4 bits (E2M1) and the power of two that they share (E8M0).

OCP Microscaling Formats 1.0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jlora._quantised._block_format import BlockFormat, nibbles, side_by_side
from jlora._quantised._lookup import looked_up

# By the four bits: the sign, then two of the exponent and one of the mantissa. Zero has no sign, as
# in llama.cpp: a sum, which stands for a lookup on TPUs, would lose it.
_MAGNITUDES = (0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = np.array([*_MAGNITUDES, *(-each for each in _MAGNITUDES)], np.float32)
_SMALLEST, _NONE = 0x00400000, 0x7FC00000  # 2**-127 and what is no number, as float32


def _decode(data: jax.Array, dtype: Any) -> jax.Array:
    exponent = data[..., :1].astype(jnp.uint32)
    bits = jnp.where(exponent == 0, _SMALLEST, exponent << 23)
    scale = lax.bitcast_convert_type(jnp.where(exponent == 255, _NONE, bits), jnp.float32)
    return side_by_side((scale * looked_up(E2M1, q) for q in nibbles(data[..., 1:])), dtype)


MXFP4 = BlockFormat("MXFP4", 32, 17, _decode)
