"""Batches on a mesh: each process makes the rows that its own devices hold."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jlora import _placement


def sharded(
    batches: Callable[..., Any], sharding: NamedSharding, *, fill: bool = False
) -> Callable[[int], Any]:
    """``n -> batch``, its arrays laid out over devices by their rows.

    The rows of step n are the same on every mesh and with any number of processes. Where
    ``batches`` has a method ``part(n, start, stop)`` that makes these rows alone, and says its
    ``batch_size``, a process makes no other ones.

    Args:
        batches: ``n -> batch``, a tree of arrays with their rows first.
        sharding: how they lie, as `jlora.models.Layout.rows` says.
        fill: whether rows of zeros, which must count nothing, fill a batch that can't be cut so.

    Raises:
        ValueError: when a batch is asked for whose rows can't be cut so.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> import jlora
        >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
        >>> rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        >>> batches = jlora.trainer.sharded(lambda n: {"x": np.full((4, 3), n)}, rows)
        >>> batch = batches(2)["x"]
        >>> batch.shape, batch.sharding == rows
        ((4, 3), True)
    """
    sizes = _sizes_of_rows(sharding)
    parts = math.prod(sizes.values())

    def batch(number: int) -> Any:
        count, part = _parts_of(batches, number)
        if count % parts and fill:
            count, part = _whole_parts(count, parts), functools.partial(_filled, part)
        if count % parts:
            axes = ",".join(f"{name}={size}" for name, size in sizes.items())
            more = _whole_parts(count, parts)
            raise ValueError(
                f"a batch of {count} rows can't be cut over {axes}: expected a multiple of {parts} "
                f"rows, such as {more}, or fill=True where rows of zeros count nothing"
            )
        part = functools.cache(part)  # several devices may hold the same rows
        mine = next(iter(sharding.addressable_devices_indices_map((count,)).values()))
        some = part(*_ends(mine, count))
        leaves, structure = jax.tree.flatten(some)

        def joined(at: int, like: np.ndarray) -> jax.Array:
            def rows(index: Any) -> np.ndarray:
                return jax.tree.leaves(part(*_ends(index, count)))[at]

            return jax.make_array_from_callback((count, *like.shape[1:]), sharding, rows)

        return jax.tree.unflatten(structure, [joined(at, each) for at, each in enumerate(leaves)])

    return batch


def filled_shapes(batch: Any, sharding: NamedSharding) -> Any:
    """The shapes of a batch as `sharded` lays it out, its rows filled up to whole parts."""
    parts = math.prod(_sizes_of_rows(sharding).values())

    def shape(array: Any) -> jax.ShapeDtypeStruct:
        rows = _whole_parts(len(array), parts)
        return jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype, sharding=sharding)

    return jax.tree.map(shape, batch)


def _sizes_of_rows(sharding: NamedSharding) -> dict[str, int]:
    """The axes of the mesh along which rows are cut, and their sizes."""
    names = _placement.axes_of(sharding.spec[0]) if sharding.spec else ()
    return {name: sharding.mesh.shape[name] for name in names}


def _whole_parts(count: int, parts: int) -> int:
    """The rows of the least batch that holds so many and can be cut into the parts."""
    return -(-count // parts) * parts


def _parts_of(batches: Any, number: int) -> tuple[int, Callable[[int, int], Any]]:
    """(the batch's rows, what makes some of them)."""
    if hasattr(batches, "part"):
        return batches.batch_size, functools.partial(batches.part, number)
    whole = jax.tree.map(np.asarray, batches(number))

    def cut(start: int, stop: int) -> Any:
        return jax.tree.map(lambda array: array[start:stop], whole)

    return len(jax.tree.leaves(whole)[0]), cut


def _filled(part: Callable[[int, int], Any], start: int, stop: int) -> Any:
    """As many rows as asked for: those that are not there are zeros."""

    def filled(array: np.ndarray) -> np.ndarray:
        missing = stop - start - len(array)
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))

    return jax.tree.map(filled, part(start, stop))


def _ends(index: Any, count: int) -> tuple[int, int]:
    """Where the rows of an index begin and end."""
    start, stop, _ = index[0].indices(count)
    return start, stop
