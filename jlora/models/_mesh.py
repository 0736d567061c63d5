"""Meshes by the sizes of their axes, and what is wrong with sizes that the devices do not make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

AXES = DATA, FSDP, MODEL = "data", "fsdp", "model"


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes of these sizes, in the order in which they are named.

    Args:
        sizes: of ``data``, ``fsdp`` and ``model``, as `Layout` describes them; one may be -1: what
            is left of the devices.
        devices: all that there are if None. The first of them serve where the sizes make fewer.

    Raises:
        ValueError: when the devices do not make such a mesh, with meshes that they make; when they
            belong to several processes and some would be left over.

    Example:
        >>> import jax
        >>> from jlora import models
        >>> mesh = models.make_mesh({"data": -1, "model": 1}, jax.devices()[:1])
        >>> dict(mesh.shape)
        {'data': 1, 'model': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    found = {name: int(size) for name, size in sizes.items()}
    count, known = len(devices), math.prod(size for size in found.values() if size != -1)
    problem = _problem(found)
    if not problem and -1 in found.values():
        if known > count or count % known:
            problem = f"{known} does not divide the {count} devices"
        found = {name: count // known if size == -1 else size for name, size in found.items()}
    whole = math.prod(found.values())
    if not problem and whole > count:
        problem = f"it has {whole} places, more than the {count} devices"
    several = len({device.process_index for device in devices}) > 1
    if not problem and whole < count and several:
        problem = f"it has {whole} places for {count} devices, which belong to several processes"
    if problem:
        asked = ",".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"mesh {asked}: {problem}: expected one such as {_choices(count)}")
    return jax.make_mesh(
        tuple(found.values()),
        tuple(found),
        axis_types=(AxisType.Auto,) * len(found),
        devices=devices[:whole],
    )


def _problem(sizes: Mapping[str, int]) -> str:
    """What is wrong with the sizes on any number of devices, or nothing."""
    if unknown := [name for name in sizes if name not in AXES]:
        return f"an axis {unknown[0]!r}, of which there are {', '.join(AXES)}"
    if wrong := [size for size in sizes.values() if size < 1 and size != -1]:
        return f"an axis of {wrong[0]}"
    if list(sizes.values()).count(-1) > 1:
        return "two axes of -1"
    return "" if sizes else "no axis"


def _choices(count: int) -> str:
    """Some meshes that so many devices make."""
    divisors = [size for size in range(2, count) if count % size == 0]
    some = [f"data={count}", *([f"fsdp={count}"] if count > 1 else [])]
    some += [f"fsdp={count // size},model={size}" for size in divisors[:2]]
    return ", ".join(some)
