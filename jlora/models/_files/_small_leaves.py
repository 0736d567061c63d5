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
from jlora._lowrank import Axes
from jlora._quantised import (
    BLOCKS,
    FORMATS,
    WRITTEN,
    BlockWeight,
    MixedStack,
    QuantizedWeight,
    encoded,
)
from jlora.models._files import _held
from jlora.models._files._stacking import (
    Opened,
    StoredBlocks,
    expected_shapes,
    layers_of,
    per_layer,
    stacked,
    stored_of,
)

STORED = "stored"
_KINDS = ("linear", "conv1d", "experts", "experts_as_ours")

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
    if not any(map(opened.as_stored, opened.shapes)):
        raise ValueError(
            f"{opened.where} holds no weights that stay as they are stored "
            f"({', '.join(BLOCKS)} of GGUF): quantize it as one of {', '.join(WRITTEN)}"
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
        f"are none of {', '.join(BLOCKS)} in all layers"
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
    """The leaf of a file's own bytes, where all of its layers have them."""
    if not _may_be_stored(opened, path):
        return None
    names = [name for name, _ in opened.placed(path, shape)]
    layers = list(layers_of(path, shape))
    found = [opened.as_stored(name) for name in names]
    if len(names) != len(layers) or None in found:
        return None
    blocks: list[StoredBlocks] = [each for each in found if each is not None]
    axes = _axes(path, shape)
    fill = _shape if shapes_alone else _filled
    if not stacked(path):
        [its] = blocks
        return BlockWeight(fill(its.shape, [its]), shape, dtype, axes, its.format)
    formats = sorted({each.format for each in blocks})
    stacks = []
    for format in formats:
        its = [each for each in blocks if each.format == format]
        data = fill((len(its), *its[0].shape), its)
        stacks.append(BlockWeight(data, (len(its), *shape[1:]), dtype, axes, format))
    if len(stacks) == 1:
        return stacks[0]
    which = [formats.index(each.format) for each in blocks]
    at = [which[:layer].count(stack) for layer, stack in enumerate(which)]
    places = (jnp.array(which, jnp.int32), jnp.array(at, jnp.int32))
    return MixedStack(tuple(stacks), *places, shape, dtype, axes)


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


def _filled(shape: tuple[int, ...], blocks: Sequence[StoredBlocks]) -> jax.Array:
    """The bytes of all of them, one behind the other along a first dimension that ``shape`` has."""
    held = _room(shape, np.dtype(np.uint8))
    for room, each in zip(held.reshape(len(blocks), *blocks[0].shape), blocks, strict=True):
        room[...] = each.read()
    return _put(held)


def _shape(shape: tuple[int, ...], blocks: Sequence[StoredBlocks]) -> Any:
    return jax.ShapeDtypeStruct(shape, np.uint8)


def _room(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    [room] = _held.empty(shape, np.dtype(dtype), None).values()
    return room


def _put(array: np.ndarray) -> jax.Array:
    return jax.device_put(array)
