"""Numbers that codes name in a small table."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def looked_up(table: np.ndarray, codes: jax.Array) -> jax.Array:
    """``table[codes]`` of at most 256 numbers and uint8 codes, to the bit.

    TPUs compare: a lookup would not be fused there with what decodes and multiplies, and its
    float32 numbers would be kept and copied.
    """
    return lax.platform_dependent(
        codes,
        tpu=functools.partial(compared, table),
        default=lambda codes: jnp.asarray(table)[codes],
    )


def compared(table: np.ndarray, codes: jax.Array) -> jax.Array:
    """The same by comparing each code with all, and adding up what fits."""
    fits = codes[..., None] == jnp.arange(len(table), dtype=codes.dtype)
    return jnp.where(fits, jnp.asarray(table), 0).sum(axis=-1)
