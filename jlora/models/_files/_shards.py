"""Safetensors files of bounded size, written tensor by tensor: never more than one in memory.

The format is 8 bytes of length, a JSON header and the bytes of all tensors. Shapes and dtypes are
known before any value is, so the header goes first. (The safetensors package writes from memory.)
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

INDEX = "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_PER_TENSOR = 256  # bytes, about


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a file holds under one name."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file and the tensors in it, in their order there."""

    name: str
    tensors: tuple[Tensor, ...]


def plan(tensors: Iterable[Tensor], max_bytes: int) -> list[Shard]:
    """The files in which the tensors go, in their order: each of at most so many bytes.

    A tensor that is larger has a file to itself.
    """
    groups: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not groups or tensor.nbytes > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(tensor)
        room -= tensor.nbytes
    if len(groups) == 1:
        names = ["model.safetensors"]
    else:
        numbers = range(1, len(groups) + 1)
        names = [f"model-{n:05}-of-{len(groups):05}.safetensors" for n in numbers]
    # wide dtypes first, so that every tensor lies at a multiple of its item's size
    return [
        Shard(name, tuple(sorted(group, key=lambda tensor: -tensor.dtype.itemsize)))
        for name, group in zip(names, groups, strict=True)
    ]


def bytes_of(shards: Sequence[Shard]) -> int:
    """What the files take on disk, with a little too much for their headers."""
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    return sum(tensor.nbytes + _HEADER_PER_TENSOR for tensor in tensors)


def write(directory: Path, shards: Sequence[Shard], value: Callable[[str], np.ndarray]) -> None:
    """Writes the files, and their index if there are several.

    Args:
        directory: an existing folder.
        shards: from `plan`.
        value: the array of a tensor by its name, asked for when it is its turn.

    Raises:
        OSError: when a file can't be written.
    """
    for shard in shards:
        with (directory / shard.name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard.tensors:
                array = np.ascontiguousarray(value(tensor.name))
                if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
                    raise TypeError(f"{tensor}: the value is {array.dtype}{array.shape}")
                file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        tensors = [tensor for shard in shards for tensor in shard.tensors]
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
            "weight_map": {tensor.name: shard.name for shard in shards for tensor in shard.tensors},
        }
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(shard: Shard) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    start = 0
    for tensor in shard.tensors:
        entries[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
