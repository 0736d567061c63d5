"""Which leaves of a model stay in a few bits, and each of them out of its file, layer by layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jlora import _placement, _words
from jlora._lowrank import Axes
from jlora._quantised import BLOCKS, FORMATS, WRITTEN, QuantizedWeight, encoded, places_of
from jlora.models._files import _held, _stored_leaves
from jlora.models._files._stacking import (
    Opened,
    expected_shapes,
    layers_of,
    per_layer,
    stacked,
    stored_of,
)
from jlora.models._files._stored_leaves import KINDS, axes_of, may_be_stored

STORED = "stored"
_KEPT = f"{', '.join(BLOCKS)} of GGUF, fp8, MXFP4, int8, nf4 and fp4 of a folder"

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
    paths = [path for path in shapes if may_be_stored(opened, path)]
    small = small_shapes(opened, STORED, np.float32)
    plain = [path for path in paths if small(path, shapes[path]) is None]
    if not plain:
        return ""
    return (
        f"{opened.where}: {len(plain)} of {len(paths)} weights are plain: {_words.named(plain)} "
        f"are not stored in all layers as one of {_KEPT}"
    )


def small_leaves(
    opened: Opened,
    quantize: str | None,
    dtype: Any,
    shardings: Mapping[str, NamedSharding] | None = None,
) -> Small:
    """What stands in the place of each weight: a quantised leaf, or None where the weight does.

    Of formats that are written, the linear layers of the stacks; as stored, whatever the file has
    so, tables and heads as well.

    Args:
        opened: the model's file or folder.
        quantize: as `check` has it.
        dtype: of the weights that the leaves stand for.
        shardings: how each weight would lie on devices, by its path; all on one if None.
    """
    if quantize is None:
        return lambda path, shape: None
    leaf = functools.partial(_encoded, format=quantize)
    if quantize == STORED:
        leaf = _stored_leaves.read
    where = {} if shardings is None else shardings
    return lambda path, shape: leaf(opened, jnp.dtype(dtype), path, shape, where.get(path))


def small_shapes(opened: Opened, quantize: str | None, dtype: Any) -> Small:
    """The leaves that `small_leaves` gives, of shapes; no weight is read."""
    if quantize is None:
        return lambda path, shape: None
    if quantize == STORED:
        return functools.partial(_stored_leaves.outlined, opened, jnp.dtype(dtype))
    return functools.partial(_outlined, opened, jnp.dtype(dtype), quantize)


def _is_encoded(opened: Opened, path: str) -> bool:
    return (
        stacked(path)
        and path.endswith("/kernel")
        and (stored_of(opened.leaves, path).kind in KINDS)
    )


def _outlined(
    opened: Opened, dtype: Any, format: str, path: str, shape: tuple[int, ...]
) -> QuantizedWeight | None:
    """The leaf that `_encoded` gives, of shapes."""
    if not _is_encoded(opened, path):
        return None
    weight = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(lambda weight: encoded(weight, axes_of(path, shape), format), weight)


def _encoded(
    opened: Opened,
    dtype: Any,
    path: str,
    shape: tuple[int, ...],
    where: NamedSharding | None,
    *,
    format: str,
) -> QuantizedWeight | None:
    """The leaf of one linear layer of each layer of the model; one of them is a float at a time."""
    if not _is_encoded(opened, path):
        return None
    axes, its = axes_of(path, shape), per_layer(path, shape)
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

    leaf = _stack(layers(), shape, dtype, axes)
    if where is None:
        return jax.tree.map(jax.device_put, leaf)
    return jax.tree.map(_placement.placed, leaf, places_of(leaf, where))


def _stack(
    layers: Iterable[QuantizedWeight], shape: tuple[int, ...], dtype: Any, axes: Axes
) -> QuantizedWeight:
    """One leaf of those of all layers, filled in place, in numpy's arrays."""
    held: Sequence[np.ndarray] = ()
    leaf: Any = None
    for at, leaf in enumerate(layers):
        arrays = jax.tree.leaves(leaf)
        if at == 0:
            held = [_room((shape[0], *array.shape), array.dtype) for array in arrays]
        for room, array in zip(held, arrays, strict=True):
            room[at] = array
    whole = jax.tree.unflatten(jax.tree.structure(leaf), held)
    return dataclasses.replace(whole, shape=shape, dtype=dtype, axes=axes)


def _room(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    [room] = _held.empty(shape, np.dtype(dtype), None).values()
    return room
