"""The tensors of a GGUF file as transformers holds the same weights, by llama.cpp's names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jlora._quantised import BLOCKS, BlockWeight
from jlora._requires import requires
from jlora.models._families._family import Family
from jlora.models._families._gguf_route import NAMES, OF_ROWS, Gguf, Joined, Undo
from jlora.models._files._boxes import Box
from jlora.models._files._kept import Kept, Numbers
from jlora.models._files._tensor import Tensor, all_at_once, as_it_lies
from jlora.models._files._torch_tensors import Kind, Stored
from jlora.models._net._config import DecoderConfig

_SUFFIX = re.compile(r"[._](weight|bias)$")
# Weights are (out, in) here, whatever they are there.
_KINDS: dict[Kind, Kind] = {"conv1d": "linear", "experts_as_ours": "experts"}


def leaves_of(family: Family, route: Gguf) -> dict[str, Stored]:
    """For each of our paths, how it lies in the file."""
    gguf = requires("gguf")
    architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(architectures[route.architecture], 1)
    names = {**NAMES, **route.names}

    def name(path: str, stored: Stored) -> str:
        if (place := route.in_a_stack(path)) is not None:
            return _part(*place)
        return names.get(path) or _named(path, stored, known)

    return {
        path: Stored(name(path, stored), _KINDS.get(stored.kind, stored.kind))
        for path, stored in family.leaves.items()
    }


def _part(tensor: str, at: int) -> str:
    """A name for one of those that the tensor holds."""
    return f"{tensor}, {at}"


def _named(path: str, stored: Stored, known: Any) -> str:
    """With {} for the layer; a head is output where none is foreseen."""
    suffix = ".bias" if stored.name.endswith("bias") else ".weight"
    for name in (stored.name, stored.written):
        found = known.get_name(_SUFFIX.sub("", name.format(0)))
        if found is not None:
            return found.replace("blk.0.", "blk.{}.") + suffix
    return f"output{suffix}" if path.startswith("head/") else f"{path} is nowhere"


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One that transformers has: its parts in the file, and what becomes of them."""

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    undo: tuple[Undo, ...]
    joined: Joined | None = None  # how its parts are one
    at: int | None = None  # the place in a tensor that holds several


@dataclasses.dataclass(frozen=True)
class Held:
    """What a tensor of a file holds of one of ours."""

    values: np.ndarray  # in the file's shape
    at: int | None = None  # the place in a tensor that holds several; None: all of it


def shape_of(tensor: Any) -> tuple[int, ...]:
    """The shape of a tensor of a file, the longest stride first."""
    return tuple(map(int, tensor.shape))[::-1]


def _that_fit(by_pattern: Mapping[str, Any], path: str) -> list[Any]:
    return [each for way, each in by_pattern.items() if re.fullmatch(way, path)]


class Tensors:
    """A file's tensors, each read when it is asked for, by llama.cpp's names.

    What the converter took apart is joined, such as gate and up of all experts; what it changed is
    undone. `into_file` is the way back.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        leaves: Mapping[str, Stored],
        route: Gguf,
        config: DecoderConfig,
    ):
        self._file, self._config, self._route = tensors, config, route
        self._here = {
            name: _Tensor((name,), shape_of(tensor), ()) for name, tensor in tensors.items()
        }
        for name in {*route.stacked.values()} & self._here.keys():
            count, *shape = self._here.pop(name).shape
            self._here |= {
                _part(name, at): _Tensor((name,), tuple(shape), (), at=at) for at in range(count)
            }
        for path, stored in leaves.items():
            for layer in range(min(config.layers, len(tensors)) if "{}" in stored.name else 1):
                self._add(path, stored, layer)
        self.shapes = {name: tensor.shape for name, tensor in self._here.items()}

    def _add(self, path: str, stored: Stored, layer: int) -> None:
        name, undo = stored.name.format(layer), tuple(_that_fit(self._route.undo, path))
        if name in self._here and self._here[name].at is None:
            shape = self._here[name].shape
            one_row = stored.kind in ("linear", "router") and len(shape) == 1
            for axis in (0,) if one_row else _that_fit(self._route.squeezed, path):
                shape = (*shape[:axis], 1, *shape[axis:])
            self._here[name] = _Tensor((name,), shape, undo)
        for joined in self._route.joined:
            parts = tuple(name.replace(joined.whole, part) for part in joined.parts)
            if name not in self._here and all(part in self._here for part in parts):
                shape = joined.shape([self._here.pop(part).shape for part in parts])
                self._here[name] = _Tensor(parts, shape, undo, joined)

    def tensor(self, name: str) -> Tensor:
        """The tensor in float32.

        One that stands in the file as it is or in a stack is read in parts, the others as a whole.
        """
        its = self._here[name]
        return self._of(name, [_in_file(self._file[part]) for part in its.parts], its.shape)

    def _of(self, name: str, parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        """A tensor of this shape, of its parts in numbers or in bytes."""
        its = self._here[name]
        if its.at is not None:
            [stack], one = parts, range(its.at, its.at + 1)
            return Tensor(shape, stack.grain[1:], lambda box: stack.read((one, *box))[0])
        if its.joined is None and not its.undo and parts[0].shape == shape:
            return parts[0]
        return all_at_once(shape, lambda: self._made(name, parts, shape))

    def _made(self, name: str, parts: Sequence[Tensor], shape: tuple[int, ...]) -> np.ndarray:
        its, found = self._here[name], [part.whole() for part in parts]
        if its.joined is not None:
            array = self._whole(name, its.joined, found)
        else:
            array = found[0].reshape(shape)
        for each in its.undo:
            array = each.out(array, self._config)
        return array

    def held_in(self, name: str) -> tuple[str, ...]:
        """The names in the file of what holds this tensor."""
        return self._here[name].parts

    def into_file(self, name: str, array: np.ndarray) -> dict[str, Held]:
        """The tensor as the file holds it, by the names there: the inverse of `tensor`.

        Args:
            name: of the tensor.
            array: in its shape, float32.
        """
        its = self._here[name]
        for each in reversed(its.undo):
            array = each.back(array, self._config)
        shapes = [shape_of(self._file[part]) for part in its.parts]
        if its.at is not None:
            return {its.parts[0]: Held(array, its.at)}
        if its.joined is None:
            return {its.parts[0]: Held(array.reshape(shapes[0]))}
        parts = its.joined.apart(array, shapes, self._config)
        return {
            part: Held(np.ascontiguousarray(values))
            for part, values in zip(its.parts, parts, strict=True)
        }

    def _whole(self, name: str, joined: Joined, found: Sequence[np.ndarray]) -> np.ndarray:
        try:
            return joined.join(found, self._config)
        except ValueError:
            pairs = zip(self._here[name].parts, found, strict=True)
            parts = ", ".join(f"{part} of shape {array.shape}" for part, array in pairs)
            raise ValueError(
                f"{parts}: together they are no {name} of the sizes in the header"
            ) from None

    def kept(self, name: str) -> Kept | None:
        """The bytes of a tensor whose rows stay whole on the way from the file to the model.

        None where they do not, or where the types of its parts are several or none of `BLOCKS`.
        """
        its = self._here[name]
        found = [self._file[part] for part in its.parts]
        [kind, *others] = {getattr(part.tensor_type, "name", "") for part in found}
        if others or kind not in BLOCKS or not {*its.undo} <= OF_ROWS:
            return None
        *rows, length = its.shape
        size, block = BLOCKS[kind].size, BLOCKS[kind].block

        shape = (*rows, length // block * size)
        data = self._of(name, [_bytes_of(part) for part in found], shape)
        arrays = {"data": Numbers(data, np.dtype(np.uint8))}
        return Kept(BlockWeight, (("format", kind),), arrays)

    def dtype(self, name: str) -> np.dtype:
        """Of what `read` gives.

        Raises:
            ValueError: when a tensor holds no floats, or in a format that gguf can't decode.
        """
        for part in self._here[name].parts:
            self._check(self._file[part])
        return np.dtype(np.float32)

    def _check(self, tensor: Any) -> None:
        try:
            row = np.zeros((1, tensor.data.shape[-1]), tensor.data.dtype)
            requires("gguf").dequantize(row, tensor.tensor_type)
        except NotImplementedError:
            kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
            raise ValueError(f"{tensor.name} is of type {kind}, which holds no weights") from None


def _bytes_of(tensor: Any) -> Tensor:
    """(*rows, bytes) of a tensor as it stands there."""
    data = tensor.data
    return as_it_lies(Path(data.filename), int(tensor.data_offset), data.shape, data.dtype)


def _in_file(tensor: Any) -> Tensor:
    """A tensor as it stands there, in float32; its rows are cut at blocks alone."""
    gguf, data = requires("gguf"), tensor.data
    shape = shape_of(tensor)
    block, _ = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    items = data.shape[-1] * block // shape[-1]  # of a block
    held = _bytes_of(tensor)

    def read(box: Box) -> np.ndarray:
        *rows, columns = box
        columns = range(columns.start // block * items, columns.stop // block * items)
        return gguf.dequantize(held.read((*rows, columns)), tensor.tensor_type)

    return Tensor(shape, (*(1,) * len(shape[1:]), block), read)
