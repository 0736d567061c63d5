"""What the bytes of a block mean, and the pieces that formats are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class BlockFormat:
    """What the bytes of a block mean."""

    name: str  # as llama.cpp calls it
    block: int  # numbers
    size: int  # bytes
    decode: Callable[[jax.Array, Any], jax.Array]  # (..., size) bytes, a dtype -> (..., block)
    encode: Callable[[jax.Array], jax.Array] | None = None  # and back; None: only read


def halves(data: jax.Array) -> jax.Array:
    """float16 numbers out of the pairs of bytes that they are, in float32: (..., count)."""
    pairs = data.reshape(*data.shape[:-1], data.shape[-1] // 2, 2)
    return lax.bitcast_convert_type(pairs, jnp.float16).astype(jnp.float32)


def bytes_of_halves(numbers: jax.Array) -> jax.Array:
    """The bytes of (..., count) numbers as float16: (..., 2 count)."""
    pairs = lax.bitcast_convert_type(numbers.astype(jnp.float16), jnp.uint8)
    return pairs.reshape(*numbers.shape[:-1], 2 * numbers.shape[-1])


def nibbles(data: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two numbers of 4 bits of each byte: all low ones, and all high ones."""
    return data & 15, data >> 4


def bytes_of_nibbles(numbers: jax.Array) -> jax.Array:
    """The bytes whose `nibbles`, the low ones first, these uint8 numbers below 16 are."""
    low, high = jnp.split(numbers, 2, axis=-1)
    return low | (high << 4)


def side_by_side(parts: Iterable[jax.Array], dtype: Any) -> jax.Array:
    """What was decoded from low bits and what from high ones, along the last axis.

    Each is of the dtype before: TPUs keep what they lay side by side.
    """
    return jnp.concatenate([part.astype(dtype) for part in parts], axis=-1)


def bits(data: jax.Array) -> jax.Array:
    """The bits of (..., bytes), the lowest of each byte first: (..., 8 bytes) of 0 and 1."""
    each = (data[..., None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    return each.reshape(*data.shape[:-1], 8 * data.shape[-1])


def bytes_of_bits(each: jax.Array) -> jax.Array:
    """The bytes whose `bits` these are."""
    in_bytes = each.reshape(*each.shape[:-1], each.shape[-1] // 8, 8).astype(jnp.uint8)
    return (in_bytes << jnp.arange(8, dtype=jnp.uint8)).sum(axis=-1, dtype=jnp.uint8)


def over(numbers: jax.Array, scale: jax.Array) -> jax.Array:
    """``numbers / scale``, by the scale's inverse as llama.cpp does; zero where the scale is."""
    return numbers * jnp.where(scale == 0, 0, 1 / jnp.where(scale == 0, 1, scale))


def farthest(blocks: jax.Array) -> jax.Array:
    """Of each block the number farthest from zero, with its sign: (..., 1)."""
    at = jnp.abs(blocks).argmax(axis=-1, keepdims=True)
    return jnp.take_along_axis(blocks, at, axis=-1)
