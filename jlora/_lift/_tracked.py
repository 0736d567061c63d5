"""A weight on its way through a jaxpr: which of its dimensions are where, and what uses them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jlora._lift._adapted import Opaque
from jlora._lift._movement import regroup


@dataclasses.dataclass(frozen=True)
class Tracked:
    """A value that is a leaf moved about."""

    path: str
    dims: tuple[tuple[int, ...], ...]  # for each dimension: the leaf's dimensions in it
    shape: tuple[int, ...]  # of the leaf
    stack: frozenset[int] = frozenset()  # the leaf's dimensions that a loop runs over
    chosen: frozenset[int] = frozenset()  # the leaf's dimensions that were indexed
    spread: bool = False  # broadcast over something else, as a bias is
    beside: tuple[Tracked, ...] = ()  # other leaves in the same array: fused weights

    def at(self, *dims: int) -> frozenset[int]:
        return frozenset(source for dim in dims for source in self.dims[dim])

    def replace(self, **changes: Any) -> Tracked:
        return dataclasses.replace(self, **changes)

    def each(self) -> tuple[Tracked, ...]:
        return (self.replace(beside=()), *self.beside)

    def map(self, change: Callable[[Tracked], Tracked | None]) -> Tracked | None:
        """The same change to each leaf in the array."""
        changed = [new for value in self.each() if (new := change(value)) is not None]
        if len(changed) <= len(self.beside):
            return None
        return changed[0].replace(beside=tuple(changed[1:]))


# Movements: (equation, operands) -> results, or None where the value is lost.


def _moved(change: Callable[[Any, Tracked], Tracked | None]):
    def move(eqn, operands):
        value = operands[0]
        if value is None or any(operands[1:]):
            return None
        result = value.map(lambda each: change(eqn, each))
        return None if result is None else [result] * len(eqn.outvars)

    return move


def _transpose(eqn, value):
    return value.replace(dims=tuple(value.dims[dim] for dim in eqn.params["permutation"]))


def _squeeze(eqn, value):
    gone = {dim % len(value.dims) for dim in eqn.params["dimensions"]}
    return value.replace(dims=tuple(d for dim, d in enumerate(value.dims) if dim not in gone))


def _broadcast(eqn, value):
    dims: list[tuple[int, ...]] = [()] * len(eqn.params["shape"])
    for old, new in enumerate(eqn.params["broadcast_dimensions"]):
        dims[new] = value.dims[old]
    spread = math.prod(eqn.params["shape"]) > math.prod(eqn.invars[0].aval.shape)
    return value.replace(dims=tuple(dims), spread=value.spread or spread)


def _reshape(eqn, value):
    shape = eqn.invars[0].aval.shape
    dims: list[tuple[int, ...]] = [()] * len(eqn.params["new_sizes"])
    try:
        groups = regroup(shape, eqn.params["new_sizes"])
    except Opaque:
        return None
    for old, new in groups:
        together = tuple(source for dim in old for source in value.dims[dim])
        for dim in new:
            dims[dim] = together
    return value.replace(dims=tuple(dims))


def _same(eqn, value):
    return value


def _narrowed(eqn, value):
    """A slice: a dimension narrowed to 1 by an index was chosen."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    chosen = [dim for dim in range(len(before)) if before[dim] != after[dim] == 1]
    lost = frozenset(source for dim in chosen for source in value.dims[dim])
    dims = tuple(() if dim in chosen else sources for dim, sources in enumerate(value.dims))
    return value.replace(dims=dims, chosen=value.chosen | lost)


def _indexed(eqn, value):
    """A gather of whole slices: the indexed dimensions were chosen."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    if any(size != 1 for dim, size in enumerate(sizes) if dim in gone):
        return None
    kept = [dim for dim in range(len(value.dims)) if dim not in gone]
    shape = eqn.invars[0].aval.shape
    chosen = {dim for dim in kept if sizes[dim] == 1 != shape[dim]}  # one slice, not yet squeezed
    dims: list[tuple[int, ...]] = [()] * eqn.outvars[0].aval.ndim
    for new, old in zip(numbers.offset_dims, kept, strict=True):
        dims[new] = () if old in chosen else value.dims[old]
    return value.replace(dims=tuple(dims), chosen=value.chosen | value.at(*gone, *chosen))


def _scalar_product(eqn, operands):
    others = [a for a, value in zip(eqn.invars, operands, strict=True) if value is None]
    if len(others) == 1 and math.prod(others[0].aval.shape) == 1:
        return [value for value in operands if value is not None]
    return None


def _first_index(change):
    """For operations whose other operands are indices."""

    def move(eqn, operands):
        value = operands[0]
        if value is None:
            return None
        result = value.map(lambda each: change(eqn, each))
        return None if result is None else [result]

    return move


def _fused(eqn, operands):
    """Weights side by side are each used as the whole is."""
    if any(value is None or value.spread or value.chosen for value in operands):
        return None
    first, *rest = (each for value in operands for each in value.each())
    return [first.replace(beside=tuple(rest))]


def _stacked(eqn, operands):
    at = eqn.params["axis"]

    def widened(value):
        return value.replace(dims=(*value.dims[:at], (), *value.dims[at:]))

    return _fused(eqn, [value and value.map(widened) for value in operands])


_UNMOVED = (
    "convert_element_type",
    "copy",
    "copy_p",
    "stop_gradient",
    "neg",
    "name",
    "reduce_precision",
    "sharding_constraint",
    "mesh_cast",
    "reshard",
    "pvary",
    "pcast",
    "all_gather",
    "rev",
    "slice",
    "split",
)
MOVES: dict[str, Callable[[Any, list[Tracked | None]], list[Tracked | None] | None]] = {
    **{name: _moved(_same) for name in _UNMOVED},
    "slice": _moved(_narrowed),
    "transpose": _moved(_transpose),
    "squeeze": _moved(_squeeze),
    "broadcast_in_dim": _moved(_broadcast),
    "reshape": _moved(_reshape),
    "dynamic_slice": _first_index(_narrowed),
    "gather": _first_index(_indexed),
    "concatenate": _fused,
    "stack": _stacked,
    "mul": _scalar_product,
    "div": _scalar_product,
    "optimization_barrier": lambda eqn, operands: list(operands),
    "device_put": lambda eqn, operands: list(operands),
}


# Roles: (equation, which operand, its value) -> (inputs, outputs)


def _dot_roles(eqn, side, value):
    contracted, batch = eqn.params["dimension_numbers"]
    kept = set(range(len(value.dims))) - {*contracted[side], *batch[side]}
    return value.at(*contracted[side]), value.at(*kept)


def _ragged_roles(eqn, side, value):
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    groups = numbers.rhs_group_dimensions if side == 1 else ()
    kept = set(range(len(value.dims))) - {*contracted[side], *batch[side], *groups}
    return value.at(*contracted[side]), value.at(*kept)


def _conv_roles(eqn, side, value):
    if side == 0:
        return frozenset(), value.at(*range(len(value.dims)))
    output, *inputs = eqn.params["dimension_numbers"].rhs_spec
    return value.at(*inputs), value.at(output)


ROLES = {
    "dot_general": _dot_roles,
    "ragged_dot_general": _ragged_roles,
    "conv_general_dilated": _conv_roles,
}
