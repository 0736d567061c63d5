"""Where the stored arrays of a quantised weight lie on a mesh: as it would, in whole blocks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from jlora import _placement
from jlora._lowrank import RANK
from jlora._quantised._mixed_stack import MixedStack
from jlora._quantised._weight import QuantizedWeight


def places_of(leaf: QuantizedWeight, place: NamedSharding) -> Any:
    """A NamedSharding for each stored array, as a leaf of them.

    Args:
        leaf: of arrays or of shapes.
        place: where the weight that it stands for would lie.

    Raises:
        ValueError: where devices would get parts of blocks: with the counts of devices that work.
    """
    if isinstance(leaf, MixedStack):
        whole = NamedSharding(place.mesh, PartitionSpec())
        layers, *others = [*place.spec, *[None] * (len(leaf.shape) - len(place.spec))]
        if layers is not None:
            raise ValueError(f"its layers, which have several formats, can't be cut over {layers}")
        its = NamedSharding(place.mesh, PartitionSpec(None, *others))
        stacks = tuple(places_of(stack, its) for stack in leaf.stacks)
        return dataclasses.replace(leaf, stacks=stacks, which=whole, at=whole)
    spec = [*place.spec, *[None] * (len(leaf.shape) - len(place.spec))]
    fields = {}
    for name, dims in leaf.dimensions().items():
        entries = _placement.layout_of(spec, dims)
        if name in leaf.of_a_block:
            entries[-1] = _along(leaf, name, spec, place)
        fields[name] = NamedSharding(place.mesh, PartitionSpec(*entries))
    return dataclasses.replace(leaf, **fields)  # type: ignore


def place_of(leaf: QuantizedWeight) -> NamedSharding | None:
    """Where the weight lies that a leaf stands for, if its arrays say where they do."""
    if isinstance(leaf, MixedStack):
        return place_of(leaf.stacks[0])
    entries: dict[int, Any] = {}
    place: Any = None
    for name, dims in leaf.dimensions().items():
        place = getattr(getattr(leaf, name), "sharding", None)
        if not isinstance(place, NamedSharding):
            return None
        spec = [*place.spec, *[None] * (len(dims) - len(place.spec))]
        entries |= {dim: entry for dim, entry in zip(dims, spec, strict=True) if dim != RANK}
        if name in leaf.of_a_block:
            entries[leaf.axes.inputs[0]] = spec[-1]
    return NamedSharding(place.mesh, PartitionSpec(*map(entries.get, range(len(leaf.shape)))))


def _along(leaf: QuantizedWeight, name: str, spec: list[Any], place: NamedSharding) -> Any:
    """How the blocks of a row are cut: as the first of the inputs."""
    first, *others = leaf.axes.inputs
    if any(spec[dim] is not None for dim in others):
        raise ValueError(f"its inputs can be cut along dimension {first} alone, got {place.spec}")
    parts = math.prod(place.mesh.shape[axis] for axis in _placement.axes_of(spec[first]))
    blocks = getattr(leaf, name).shape[-1] // leaf.of_a_block[name]
    if blocks % parts:
        counts = ", ".join(str(count) for count in range(1, blocks + 1) if blocks % count == 0)
        raise ValueError(
            f"{blocks} blocks of {leaf.format} along its inputs can't be cut over {parts} devices: "
            f"{counts} would do"
        )
    return spec[first]
