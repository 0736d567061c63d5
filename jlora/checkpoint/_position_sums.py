"""A sum over all values of an array that tells when one of them changed, or two changed places.

The bits of each value, as words of 32 bits, are mixed with where it stands in the whole array, and
the results added. Integers wrap and addition knows no order, so that the sum is the same however
the array is laid out and taken apart. Mixing is a bijection: one changed word always changes the
sum; several cancel out by chance, once in 2**64.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

Sums = tuple[int, int]  # of all words so far, each below 2**32

_AT_ONCE = 2**18  # values: smaller arrays are added up by NumPy, which compiles nothing


def of_array(array: jax.Array | np.ndarray, starts: tuple[int, ...] = ()) -> Sums:
    """The sums of an array, or of a part that begins there in the whole one.

    Each shard's are computed on the device that holds it. Of an array over several processes they
    are those of what this one holds, without what is a copy of another's.
    """
    if not isinstance(array, jax.Array):
        return of_part(np.asarray(array), starts)
    first = np.asarray(starts or (0,) * array.ndim, np.uint32)
    begun: list[Any] = []  # on all devices at once
    for shard in array.addressable_shards:
        data: Any = shard.data
        begins = first + np.asarray([along.start or 0 for along in shard.index], np.uint32)
        if shard.replica_id:  # a copy of another one
            continue
        if data.size <= _AT_ONCE:
            begun += _of_words(np, np.asarray(data), begins)
        else:
            with jax.set_mesh(Mesh([shard.device], "shard")):  # whatever mesh the caller set
                begun += _on_device(data, begins)
    return functools.reduce(added, jax.device_get(begun), (0, 0))


def of_part(part: np.ndarray, starts: tuple[int, ...]) -> Sums:
    """The sums of a part of an array; ``starts`` is where it begins, zeros unless given."""
    starts = starts or (0,) * part.ndim
    rows = max(1, _AT_ONCE * part.shape[0] // max(part.size, 1)) if part.ndim else 1
    pieces = range(0, part.shape[0], rows) if part.ndim else ()
    if len(pieces) <= 1:
        return functools.reduce(added, _of_words(np, part, np.asarray(starts, np.uint32)), (0, 0))
    sums = (0, 0)
    for first in pieces:
        sums = added(sums, of_part(part[first : first + rows], (starts[0] + first, *starts[1:])))
    return sums


def added(one: Any, other: Any) -> Sums:
    """The sums of two parts of one array."""
    first, second = ((int(a) + int(b)) % 2**32 for a, b in zip(one, other, strict=True))
    return first, second


@jax.jit
def _on_device(part: jax.Array, starts: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    return _of_words(jnp, part, starts)


def _of_words(xp: Any, part: Any, starts: Any) -> list[tuple[Any, Any]]:
    """The two sums for each word of a value, by NumPy or by JAX: one formula, in both it wraps."""
    if not part.ndim:  # NumPy's integers without dimensions do not wrap in silence
        part, starts = part.reshape(1), xp.zeros(1, xp.uint32)
    place = xp.zeros(part.shape, xp.uint32)
    for dim, size in enumerate(part.shape):
        along = xp.arange(size, dtype=xp.uint32) + starts[dim]
        key = _mixed(xp, along * xp.uint32(0x9E3779B1) + xp.uint32(0x7F4A7C15 * (dim + 1) % 2**32))
        place = place + key.reshape((-1,) + (1,) * (part.ndim - dim - 1))
    return [
        _added_up(xp, _mixed(xp, word + place + xp.uint32(0x6C62272E * number % 2**32)))
        for number, word in enumerate(_words(xp, part))
    ]


def _added_up(xp: Any, mixed: Any) -> tuple[Any, Any]:
    again = (mixed ^ (mixed >> xp.uint32(15))) * xp.uint32(0x2C1B3C6D)
    if xp is np:
        return np.sum(mixed, dtype=np.uint32), np.sum(again, dtype=np.uint32)
    # as one reduction: of two, each would want ``mixed`` whole in memory
    zeros, every = (np.uint32(0), np.uint32(0)), tuple(range(mixed.ndim))
    plus = lambda one, other: (one[0] + other[0], one[1] + other[1])  # noqa: E731
    return jax.lax.reduce((mixed, again), zeros, plus, every)


def _mixed(xp: Any, word: Any) -> Any:
    """A bijection of 32 bits after which every bit depends on every other.

    Source: Appleby, MurmurHash3, its last step.
    """
    word = (word ^ (word >> xp.uint32(16))) * xp.uint32(0x85EBCA6B)
    word = (word ^ (word >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
    return word ^ (word >> xp.uint32(16))


def _words(xp: Any, array: Any) -> tuple[Any, ...]:
    """The bits of each value, as arrays of uint32 of the array's shape."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return _words(xp, xp.real(array)) + _words(xp, xp.imag(array))
    if array.dtype == bool:
        return (array.astype(xp.uint32),)
    if jnp.issubdtype(array.dtype, jnp.integer) and jnp.iinfo(array.dtype).bits < 8:
        return (array.astype(xp.int32).astype(xp.uint32),)
    if jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits < 8:
        return _words(xp, array.astype(xp.float32))
    width = array.dtype.itemsize * 8
    if xp is np:
        bits = np.ascontiguousarray(array).view(f"uint{width}").reshape(array.shape)
        if width < 64:
            return (bits.astype(np.uint32),)
        return (bits & np.uint64(2**32 - 1)).astype(np.uint32), (bits >> np.uint64(32)).astype(
            np.uint32
        )
    if width < 64:
        return (jax.lax.bitcast_convert_type(array, f"uint{width}").astype(jnp.uint32),)
    halves = jax.lax.bitcast_convert_type(array, jnp.uint32)
    return halves[..., 0], halves[..., 1]
