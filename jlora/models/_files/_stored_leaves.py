"""A leaf of a file's own quantised numbers: which tensors lie where in it, and what is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jlora._lowrank import Axes, Dims
from jlora._quantised import MixedStack, QuantizedWeight, places_of
from jlora.models._files import _boxes, _held
from jlora.models._files._boxes import Box
from jlora.models._files._kept import Kept
from jlora.models._files._stacking import Opened, stacked, stored_of
from jlora.models._files._tensor import Tensor, all_at_once

IN_OUT = ("conv1d", "experts_as_ours")  # as a file has them
KINDS = ("linear", "experts", *IN_OUT)


def may_be_stored(opened: Opened, path: str) -> bool:
    """Whether the leaf is one that files quantise."""
    return stored_of(opened.leaves, path).kind in KINDS or path.endswith("/embedding")


def axes_of(path: str, shape: tuple[int, ...]) -> Axes:
    """Kernels are (..., in, out); a table is read by its rows, which lie whole."""
    stack, (before, last) = tuple(range(len(shape) - 2)), (len(shape) - 2, len(shape) - 1)
    if path.endswith("/kernel"):
        return Axes((before,), (last,), stack)
    return Axes((last,), (before,), stack)


def outlined(
    opened: Opened, dtype: Any, path: str, shape: tuple[int, ...]
) -> QuantizedWeight | None:
    """The leaf that `read` gives, of shapes."""
    leaf = _planned(opened, dtype, path, shape)
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), leaf)


def read(
    opened: Opened, dtype: Any, path: str, shape: tuple[int, ...], where: NamedSharding | None
) -> QuantizedWeight | None:
    """The leaf of a file's own numbers, where all of its layers have them.

    Args:
        opened: the model's file or folder.
        dtype: of the weight that the leaf stands for.
        path: of the weight.
        shape: of the weight.
        where: it would lie; what only other processes hold of its arrays is not read.
    """
    leaf = _planned(opened, dtype, path, shape)
    if leaf is None or where is None:
        return jax.tree.map(lambda array: array.filled(None), leaf)
    return jax.tree.map(lambda array, place: array.filled(place), leaf, places_of(leaf, where))


@dataclasses.dataclass(frozen=True)
class _Array:
    """One of a leaf's arrays, before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    order: tuple[int, ...]  # for each axis the one that it is where outputs come before inputs
    parts: Sequence[tuple[Box, Tensor]]  # where they lie there

    def filled(self, place: NamedSharding | None) -> jax.Array:
        """The array at its place; one part is read at a time."""
        held = _held.empty(self.shape, self.dtype, place)
        back = np.argsort(self.order)
        by_outputs = {
            tuple(box[axis] for axis in back): values.transpose(back)
            for box, values in held.items()
        }
        for box, tensor in self.parts:
            for target, values in _held.of_tensor(by_outputs, box, tensor):
                target[...] = values
        return _held.joined(self.shape, place, held)


def _planned(opened: Opened, dtype: Any, path: str, shape: tuple[int, ...]) -> Any:
    """The leaf of `_Array`s; None where the weight is plain."""
    if not may_be_stored(opened, path):
        return None
    placed = [*opened.placed(path, shape)]
    found = [opened.kept(name) for name, _ in placed]
    turned = stored_of(opened.leaves, path).kind in IN_OUT
    outputs = max(box[-2].stop for _, box in placed)
    layers: dict[int, list[_Placed]] = {}
    for kept, (name, box) in zip(found, placed, strict=True):
        kept = kept if kept is None or len(box[-2]) == outputs else _beside(kept, len(box[-2]))
        if kept is None or kept.turned != turned:
            return None
        own = len(opened.shapes[name]) - 2  # dimensions of the tensor's own stack
        layers.setdefault(box[0].start if stacked(path) else 0, []).append(_Placed(kept, box, own))
    kinds = {at: {each.kept.kind for each in its} for at, its in layers.items()}
    if any(len(its) > 1 for its in kinds.values()):
        return None
    axes = axes_of(path, shape)
    if not stacked(path):
        return _joined(layers[0], shape, dtype, axes, outputs)
    of_layers = [next(iter(its)) for its in kinds.values()]
    each = sorted(set(of_layers), key=repr)
    which = [each.index(kind) for kind in of_layers]
    at = [which[:layer].count(stack) for layer, stack in enumerate(which)]
    stacks = []
    for stack in range(len(each)):
        count = which.count(stack)
        its = [
            dataclasses.replace(placed, box=(range(at[layer], at[layer] + 1), *placed.box[1:]))
            for layer in layers
            if which[layer] == stack
            for placed in layers[layer]
        ]
        stacks.append(_joined(its, (count, *shape[1:]), dtype, axes, outputs))
    if len(stacks) == 1:
        return stacks[0]
    places: Any = [_given(np.array(numbers, np.int32)) for numbers in (which, at)]
    return MixedStack(tuple(stacks), places[0], places[1], shape, dtype, axes)


def _given(array: np.ndarray) -> _Array:
    """An array that is in no file."""
    parts = [(_boxes.whole(array.shape), all_at_once(array.shape, lambda: array))]
    return _Array(array.shape, array.dtype, (*range(array.ndim),), parts)


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A tensor's arrays, and where it lies in its leaf as the file has it."""

    kept: Kept
    box: Box
    own: int  # dimensions of its arrays that are a stack of the tensor's own

    def room(self, name: str, of: tuple[int, ...], outputs: int) -> tuple[int, ...]:
        """The shape of an array of the leaf whose stack this is."""
        rest = self.kept.arrays[name].shape[self.own :]
        parts = outputs // len(self.box[-2])
        return (*of, *rest) if parts == 1 else (*of, rest[0] * parts, *rest[1:])

    def place(self, name: str) -> Box:
        """Where the array lies in that of the leaf."""
        stack, rows = self.box[:-2], self.box[-2]
        rest = self.kept.arrays[name].shape[self.own :]
        if not rest:  # one number a matrix
            return stack
        first = rows.start * rest[0] // len(rows)
        return (*stack, range(first, first + rest[0]), *_boxes.whole(rest[1:]))


def _beside(kept: Kept, rows: int) -> Kept | None:
    """The same in arrays that lie beside those of other tensors, outputs by outputs."""
    if kept.rows is None:
        return kept.apart
    return kept if rows % kept.rows == 0 else None


def _joined(
    placed: Sequence[_Placed], shape: tuple[int, ...], dtype: Any, axes: Axes, outputs: int
) -> QuantizedWeight:
    """One leaf of tensors that are of one kind."""
    kept, stack = placed[0].kept, tuple(shape[dim] for dim in axes.stack)
    its: Any = {"shape": shape, "dtype": dtype, "axes": axes, **dict(kept.settings)}
    dimensions = kept.leaf(**kept.arrays, **its).dimensions()
    arrays: Any = {}
    for name, numbers in kept.arrays.items():
        room, order = placed[0].room(name, stack, outputs), _order(dimensions[name], axes)
        parts = [(each.place(name), each.kept.arrays[name].tensor) for each in placed]
        lies = tuple(room[axis] for axis in order)
        arrays[name] = _Array(lies, numbers.dtype, order, parts)
    return kept.leaf(**arrays, **its)


def _order(dims: Dims, axes: Axes) -> tuple[int, ...]:
    """For each axis of a leaf's array which one of an array by outputs it is."""
    by_outputs = (*axes.stack, *axes.outputs, *axes.inputs)
    return tuple(map(by_outputs.index, dims)) if {*dims} == {*by_outputs} else (*range(len(dims)),)
