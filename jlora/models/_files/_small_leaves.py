"""Which leaves of a model stay in a few bits, and each of them out of its file, layer by layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import _words
from jlora._lowrank import Axes, Dims
from jlora._quantised import (
    BLOCKS,
    FORMATS,
    WRITTEN,
    MixedStack,
    QuantizedWeight,
    encoded,
)
from jlora.models._files import _boxes, _held
from jlora.models._files._boxes import Box
from jlora.models._files._kept import Kept
from jlora.models._files._stacking import (
    Opened,
    expected_shapes,
    layers_of,
    per_layer,
    stacked,
    stored_of,
)

STORED = "stored"
_KEPT = f"{', '.join(BLOCKS)} of GGUF, fp8, MXFP4, int8, nf4 and fp4 of a folder"
_IN_OUT = ("conv1d", "experts_as_ours")  # as a file has them
_KINDS = ("linear", "experts", *_IN_OUT)

Small = Callable[[str, tuple[int, ...]], Any]  # a leaf for a path and a shape, or None


def check(quantize: str | None, opened: Opened) -> None:
    """Nothing, where the model's weights can be kept so.

    Raises:
        ValueError: when there is no such format, or the file stores nothing in blocks.
    """
    if quantize is None or quantize in WRITTEN:
        return
    if quantize != STORED:
        only = f"; {quantize} is only read, as {STORED!r}" if quantize in FORMATS else ""
        raise ValueError(
            f"quantize={quantize!r}: expected None, {STORED!r} or one of {', '.join(WRITTEN)}{only}"
        )
    if not any(map(opened.kept, opened.shapes)):
        raise ValueError(
            f"{opened.where} holds no weights that stay as they are stored "
            f"({_KEPT}): quantize it as one of {', '.join(WRITTEN)}"
        )


def left_plain(opened: Opened) -> str:
    """Which weights of a file can't be kept as they are stored, in words; nothing if all can."""
    shapes = expected_shapes(opened.config)
    paths = [path for path in shapes if _may_be_stored(opened, path)]
    small = small_leaves(opened, STORED, np.float32, shapes_alone=True)
    plain = [path for path in paths if small(path, shapes[path]) is None]
    if not plain:
        return ""
    return (
        f"{opened.where}: {len(plain)} of {len(paths)} weights are plain: {_words.named(plain)} "
        f"are not stored in all layers as one of {_KEPT}"
    )


def small_leaves(
    opened: Opened, quantize: str | None, dtype: Any, *, shapes_alone: bool = False
) -> Small:
    """What stands in the place of each weight: a quantised leaf, or None where the weight does.

    Of formats that are written, the linear layers of the stacks; as stored, whatever the file has
    so, tables and heads as well.

    Args:
        opened: the model's file or folder.
        quantize: as `check` has it.
        dtype: of the weights that the leaves stand for.
        shapes_alone: whether no weight is read, and leaves are of shapes.
    """
    if quantize is None:
        return lambda path, shape: None
    if quantize == STORED:
        return functools.partial(_as_stored, opened, jnp.dtype(dtype), shapes_alone)
    if shapes_alone:
        return functools.partial(_outlined, opened, jnp.dtype(dtype), quantize)
    return functools.partial(_encoded, opened, jnp.dtype(dtype), quantize)


def _may_be_stored(opened: Opened, path: str) -> bool:
    return stored_of(opened.leaves, path).kind in _KINDS or path.endswith("/embedding")


def _is_encoded(opened: Opened, path: str) -> bool:
    return (
        stacked(path)
        and path.endswith("/kernel")
        and (stored_of(opened.leaves, path).kind in _KINDS)
    )


def _outlined(
    opened: Opened, dtype: Any, format: str, path: str, shape: tuple[int, ...]
) -> QuantizedWeight | None:
    """The leaf that `_encoded` gives, of shapes."""
    if not _is_encoded(opened, path):
        return None
    weight = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(lambda weight: encoded(weight, _axes(path, shape), format), weight)


def _encoded(
    opened: Opened, dtype: Any, format: str, path: str, shape: tuple[int, ...]
) -> QuantizedWeight | None:
    """The leaf of one linear layer of each layer of the model; one of them is a float at a time."""
    if not _is_encoded(opened, path):
        return None
    axes, its = _axes(path, shape), per_layer(path, shape)
    of_one = Axes(*(tuple(dim - 1 for dim in dims) for dims in (axes.inputs, axes.outputs)),
                  stack=tuple(dim - 1 for dim in axes.stack if dim))  # fmt: skip

    def layers() -> Iterable[QuantizedWeight]:
        for layer in layers_of(path, shape):
            weight = opened.layer(path, layer, its)
            if not np.isfinite(weight).all():
                raise ValueError(
                    f"{opened.where}: {path} of layer {layer} has values that are no finite "
                    f"numbers: {format} can't hold them"
                )
            yield encoded(weight, of_one, format)

    return _stack(layers(), shape, dtype, axes)


def _as_stored(
    opened: Opened, dtype: Any, shapes_alone: bool, path: str, shape: tuple[int, ...]
) -> QuantizedWeight | None:
    """The leaf of a file's own numbers, where all of its layers have them."""
    if not _may_be_stored(opened, path):
        return None
    placed = [*opened.placed(path, shape)]
    found = [opened.kept(name) for name, _ in placed]
    turned = stored_of(opened.leaves, path).kind in _IN_OUT
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
    axes, room = _axes(path, shape), _outline if shapes_alone else _filled
    if not stacked(path):
        return _joined(layers[0], shape, dtype, axes, outputs, room)
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
        stacks.append(_joined(its, (count, *shape[1:]), dtype, axes, outputs, room))
    if len(stacks) == 1:
        return stacks[0]
    places = (jnp.array(which, jnp.int32), jnp.array(at, jnp.int32))
    return MixedStack(tuple(stacks), *places, shape, dtype, axes)


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

    def index(self, name: str) -> tuple[slice, ...]:
        """Where the array lies in that of the leaf."""
        stack, rows = _boxes.index(self.box[:-2]), self.box[-2]
        rest = self.kept.arrays[name].shape[self.own :]
        if not rest:  # one number a matrix
            return stack
        first = rows.start * rest[0] // len(rows)
        return (*stack, slice(first, first + rest[0]))


def _beside(kept: Kept, rows: int) -> Kept | None:
    """The same in arrays that lie beside those of other tensors, outputs by outputs."""
    if kept.rows is None:
        return kept.apart
    return kept if rows % kept.rows == 0 else None


def _joined(
    placed: Sequence[_Placed],
    shape: tuple[int, ...],
    dtype: Any,
    axes: Axes,
    outputs: int,
    filled: Callable[..., Any],
) -> QuantizedWeight:
    """One leaf of tensors that are of one kind."""
    kept, stack = placed[0].kept, tuple(shape[dim] for dim in axes.stack)
    its = {"shape": shape, "dtype": dtype, "axes": axes, **dict(kept.settings)}
    dimensions = kept.leaf(**kept.arrays, **its).dimensions()  # type: ignore
    arrays = {
        name: filled(
            placed[0].room(name, stack, outputs),
            numbers.dtype,
            _order(dimensions[name], axes),
            [(each.index(name), each.kept.arrays[name]) for each in placed],
        )
        for name, numbers in kept.arrays.items()
    }
    return kept.leaf(**arrays, **its)  # type: ignore


def _order(dims: Dims, axes: Axes) -> tuple[int, ...]:
    """For each axis of a leaf's array which one of an array by outputs it is."""
    by_outputs = (*axes.stack, *axes.outputs, *axes.inputs)
    return tuple(map(by_outputs.index, dims)) if {*dims} == {*by_outputs} else (*range(len(dims)),)


def _axes(path: str, shape: tuple[int, ...]) -> Axes:
    """Kernels are (..., in, out); a table is read by its rows, which lie whole."""
    stack, (before, last) = tuple(range(len(shape) - 2)), (len(shape) - 2, len(shape) - 1)
    if path.endswith("/kernel"):
        return Axes((before,), (last,), stack)
    return Axes((last,), (before,), stack)


def _stack(
    layers: Iterable[QuantizedWeight], shape: tuple[int, ...], dtype: Any, axes: Axes
) -> QuantizedWeight:
    """One leaf of those of all layers, filled in place."""
    held: Sequence[np.ndarray] = ()
    leaf: Any = None
    for at, leaf in enumerate(layers):
        arrays = jax.tree.leaves(leaf)
        if at == 0:
            held = [_room((shape[0], *array.shape), array.dtype) for array in arrays]
        for room, array in zip(held, arrays, strict=True):
            room[at] = array
    whole = jax.tree.unflatten(jax.tree.structure(leaf), map(_put, held))
    return dataclasses.replace(whole, shape=shape, dtype=dtype, axes=axes)


def _filled(
    shape: tuple[int, ...], dtype: np.dtype, order: tuple[int, ...], parts: Iterable[Any]
) -> jax.Array:
    """An array, its axes in this order, of what lies at each index of one of this shape.

    One of them is read at a time.
    """
    held = _room(tuple(shape[axis] for axis in order), dtype)
    by_outputs = held.transpose(np.argsort(order))
    for index, numbers in parts:
        room = by_outputs[(*index, ...)]
        room[...] = numbers.read().reshape(room.shape)
    return _put(held)


def _outline(
    shape: tuple[int, ...], dtype: np.dtype, order: tuple[int, ...], parts: Iterable[Any]
) -> Any:
    return jax.ShapeDtypeStruct(tuple(shape[axis] for axis in order), dtype)


def _room(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    [room] = _held.empty(shape, np.dtype(dtype), None).values()
    return room


def _put(array: np.ndarray) -> jax.Array:
    return jax.device_put(array)
