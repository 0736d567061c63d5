"""Which bytes a GGUF file is made of, when some tensors of another one change: a list of pieces."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora._requires import requires
from jlora.models._files._gguf_fields import Fields
from jlora.models._files._gguf_tensors import shape_of

_OF_PARTS = ("split.no", "split.count", "split.tensors.count")  # of a file in several parts
_FILE_TYPE = "general.file_type"


@dataclasses.dataclass(frozen=True)
class Copied:
    """Bytes of a file that is there."""

    file: Path
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Fresh:
    """The bytes of a tensor that changes."""

    name: str
    size: int


Piece = bytes | Copied | Fresh


def pieces(
    path: Path, fields: Fields, tensors: Mapping[str, Any], changed: Mapping[str, Any]
) -> list[Piece]:
    """The new file, from its first byte to its last.

    What does not change is copied. Where each tensor keeps its type, all else lies where it lay.

    Args:
        path: of the file that was read.
        fields: of its header.
        tensors: those of the `gguf` package, by name.
        changed: the types of those that change.

    Raises:
        ValueError: when the file's numbers are stored the other way round.
    """
    first = next(iter(tensors.values()))
    if not first.field.parts[0].dtype.isnative:
        raise ValueError(f"{path} is stored big-endian first, which can't be written: convert it")
    in_order = sorted(tensors.values(), key=lambda its: (_file(its), int(its.data_offset)))
    files = list(dict.fromkeys(map(_file, in_order)))
    stays = all(tensors[name].tensor_type == kind for name, kind in changed.items())
    if stays and files == [fields.file]:
        return list(_patched(fields.file, in_order, changed))
    return list(_laid_out(fields, in_order, changed))


def size_of(pieces: Iterable[Piece]) -> int:
    """The bytes of the file."""
    return sum(len(each) if isinstance(each, bytes) else each.size for each in pieces)


def bytes_as(tensor: Any, kind: Any) -> int:
    """How many bytes a tensor takes in another type."""
    block, size = requires("gguf").GGML_QUANT_SIZES[kind]
    return int(np.prod(shape_of(tensor), dtype=np.int64)) // block * size


def _patched(file: Path, in_order: list[Any], changed: Mapping[str, Any]):
    """The old file with some tensors in their places."""
    at = 0
    for tensor in in_order:
        if tensor.name in changed:
            yield Copied(file, at, int(tensor.data_offset) - at)
            yield Fresh(tensor.name, int(tensor.n_bytes))
            at = int(tensor.data_offset) + int(tensor.n_bytes)
    yield Copied(file, at, file.stat().st_size - at)


def _laid_out(fields: Fields, in_order: list[Any], changed: Mapping[str, Any]):
    """The entries as they were, the tensors one behind the other."""
    file = fields.file
    kinds = {its.name: changed.get(its.name, its.tensor_type) for its in in_order}
    alignment = int(fields.get("general.alignment", 32))
    sizes = {its.name: bytes_as(its, kinds[its.name]) for its in in_order}
    padded = [size + -size % alignment for size in sizes.values()]
    starts = dict(zip(sizes, itertools.accumulate(padded, initial=0), strict=False))
    places = {name: at for name, at in fields.places().items() if name not in _OF_PARTS}
    told = {_FILE_TYPE: _file_type(fields, in_order, kinds)}
    head = b"".join(
        [
            _bytes(file, range(8)),  # magic and version
            struct.pack("<QQ", len(in_order), len(places)),
            *(_bytes(file, at, told.get(name)) for name, at in places.items()),
            *(_entry(its, kinds[its.name], starts[its.name]) for its in in_order),
        ]
    )
    yield head + bytes(-len(head) % alignment)
    for its, whole in zip(in_order, padded, strict=True):
        size = sizes[its.name]
        if its.name in changed:
            yield Fresh(its.name, size)
        else:
            yield Copied(_file(its), int(its.data_offset), size)
        yield bytes(whole - size)


def _entry(tensor: Any, kind: Any, start: int) -> bytes:
    """A tensor's entry in the header: name and shape as they were, type, place."""
    field = tensor.field
    size = sum(int(part.nbytes) for part in field.parts)
    kept = _bytes(_file(tensor), range(field.offset, field.offset + size - 12))
    return kept + struct.pack("<IQ", int(kind), start)


def _file_type(fields: Fields, tensors: list[Any], kinds: Mapping[str, Any]) -> bytes | None:
    """The file's type, where most of its weights come to another than they had; else None."""
    before, after = collections.Counter(), collections.Counter()
    for its in tensors:
        before[its.tensor_type] += int(its.n_elements)
        after[kinds[its.name]] += int(its.n_elements)
    [(most, _)] = after.most_common(1)
    if _FILE_TYPE not in fields or before.most_common(1)[0][0] == most:
        return None
    named = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): kind
             for kind in requires("gguf").LlamaFileType}  # fmt: skip
    return struct.pack("<I", int(named[most.name])) if most.name in named else None


def _bytes(file: Path, at: range, end: bytes | None = None) -> bytes:
    """Bytes of a file, with others at their end."""
    with file.open("rb") as opened:
        opened.seek(at.start)
        found = opened.read(len(at))
    return found if end is None else found[: -len(end)] + end


def _file(tensor: Any) -> Path:
    return Path(tensor.data.filename)
