"""What this process holds of an array that lies on many devices, and the array out of that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jlora.models._files import _boxes
from jlora.models._files._boxes import Box
from jlora.models._files._tensor import Tensor

_ALIGNED = 64  # bytes: an array that begins so becomes one of a CPU as it lies


def empty(
    shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding | None
) -> dict[Box, np.ndarray]:
    """An array for each box that devices of this process hold; devices with the same one share it.

    Args:
        shape: of the whole array.
        dtype: of it.
        sharding: how it lies on devices; all of it here if None.
    """
    if sharding is None:
        return {_boxes.whole(shape): _empty(shape, dtype)}
    boxes = _by_device(shape, sharding).values()
    return {box: _empty(_boxes.shape(box), dtype) for box in dict.fromkeys(boxes)}


def of_tensor(
    held: Mapping[Box, np.ndarray], place: Box, tensor: Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The parts of what is held that lie in a tensor: where each belongs, and its values.

    Args:
        held: arrays by their boxes, as `empty` gives them.
        place: the tensor's box. It has not the first dimensions in which it is one entry.
        tensor: of which no more is read.
    """
    targets: dict[Box, np.ndarray] = {}
    for box, values in held.items():
        if (both := _boxes.common(box, place)) is not None:
            inside = _boxes.within(both, place)[len(place) - len(tensor.shape) :]
            targets[inside] = values[(*_boxes.index(_boxes.within(both, box)), ...)]
    for inside, values in tensor.parts(targets):
        yield targets[inside], values


def joined(
    shape: tuple[int, ...], sharding: NamedSharding | None, held: Mapping[Box, np.ndarray]
) -> jax.Array:
    """The array whose part in this process is this; its other parts are other processes'."""
    if sharding is None:
        return jax.device_put(held[_boxes.whole(shape)])
    parts = [
        jax.device_put(held[box], device) for device, box in _by_device(shape, sharding).items()
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _by_device(shape: tuple[int, ...], sharding: NamedSharding) -> dict[Any, Box]:
    indices = sharding.addressable_devices_indices_map(shape)
    return {device: _boxes.of(index or (), shape) for device, index in indices.items()}


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    count = math.prod(shape) * dtype.itemsize
    room = np.empty(count + _ALIGNED, np.uint8)
    start = -room.ctypes.data % _ALIGNED
    return room[start : start + count].view(dtype).reshape(shape)
