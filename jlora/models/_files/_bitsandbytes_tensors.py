"""Weights of 4 bits in a folder that bitsandbytes wrote: nf4 or fp4.

``NAME`` is two numbers to a byte, along the whole of the (out, in) matrix; ``NAME.absmax`` the
scale of each block, ``NAME.quant_map`` the table of 16. With double quantisation ``absmax`` holds
codes of ``NAME.nested_quant_map``, and ``NAME.nested_absmax`` the scales of groups of them. The
rest is JSON in ``NAME.quant_state.bitsandbytes__TYPE``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jlora import _words
from jlora._quantised import FourBitWeight, _four_bits
from jlora._safetensors import Header
from jlora.models._files._kept import Kept, Numbers
from jlora.models._files._quantised_weight import QuantisedTensor, turned_names
from jlora.models._files._stacking import Opened
from jlora.models._files._tensor import Tensor, all_at_once, as_it_lies

_STATE = ".quant_state.bitsandbytes__"
_NEAR = 1e-6  # tables differ in their last bit with the device that made them
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def weights(
    opened: Opened, tensors: Mapping[str, Header]
) -> tuple[dict[str, QuantisedTensor], list[str]]:
    """The weights by name, and what does not fit.

    Args:
        opened: a folder that names the tensors as they stand in the files.
        tensors: what the files say of them.
    """
    states = {stem: kind for stem, at, kind in (name.partition(_STATE) for name in tensors) if at}
    if not states:
        return {}, []
    wanted = opened.expected()
    turned = turned_names(opened)
    found: dict[str, QuantisedTensor] = {}
    problems: list[str] = []
    for name, kind in states.items():
        as_bytes = (2 * math.prod(tensors[name].shape), 1) if name in tensors else ()
        nested = f"{name}.nested_absmax" in tensors
        its = _Weight(
            opened,
            tensors,
            name,
            kind,
            nested,
            wanted.get(name, as_bytes),
            turned(name),
        )
        if kind not in _four_bits.TABLES:
            known = ", ".join(map(repr, _four_bits.TABLES))
            problems.append(f"{name} is of bitsandbytes' type {kind!r}, but only {known} are read")
        elif missing := [part for part in its.parts if part not in tensors]:
            problems += [f"{name} has no {part}" for part in missing]
        else:
            found[name] = its.tensor()
    return found, problems


class _State(NamedTuple):
    """What the JSON says."""

    block: int
    offset: float  # of double quantisation
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Weight:
    """One of them: where it stands."""

    opened: Opened
    tensors: Mapping[str, Header]
    name: str
    kind: str
    nested: bool  # whether scales have scales
    shape: tuple[int, ...]
    turned: bool  # whether that is (in, out), and theirs (out, in)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its tensors."""
        nested = (".nested_absmax", ".nested_quant_map") if self.nested else ()
        ends = ("", ".absmax", ".quant_map", *nested, f"{_STATE}{self.kind}")
        return tuple(f"{self.name}{end}" for end in ends)

    def tensor(self) -> QuantisedTensor:
        """As a whole or not at all."""
        return QuantisedTensor(
            self.shape, self.parts, self.shape, lambda box: self._decoded(), self._kept, self._dtype
        )

    def _dtype(self) -> np.dtype:
        here = self.tensors[self.name].start > 0
        return self._state.dtype if here else _DTYPES["bfloat16"]

    @property
    def _matrix(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.turned else self.shape

    def _read(self, end: str) -> np.ndarray:
        return self.opened.read(f"{self.name}{end}")

    @functools.cached_property
    def _state(self) -> _State:
        """What the JSON says.

        Raises:
            ValueError: when it can't be read, or does not fit the other tensors.
        """
        end = f"{_STATE}{self.kind}"
        try:
            said = json.loads(self._read(end).tobytes())
            shape, block = tuple(map(int, said["shape"])), int(said["blocksize"])
            offset = float(said["nested_offset"] if self.nested else 0)
            group = int(said["nested_blocksize"] if self.nested else _four_bits.GROUP)
            dtype = _DTYPES[said["dtype"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            cause = _words.one_line(repr(error))
            raise ValueError(f"{self.name}{end} can't be read: {cause}") from None
        if shape != self._matrix:
            raise ValueError(f"{self.name} has shape {shape}, expected {self._matrix}")
        if group != _four_bits.GROUP or block < 2 or block % 2:
            raise ValueError(
                f"{self.name} has blocks of {block} numbers and groups of {group} scales: expected "
                f"an even number, and {_four_bits.GROUP}"
            )
        blocks = -(-math.prod(shape) // block)
        sizes = {"": -(-math.prod(shape) // 2), ".absmax": blocks}
        tables = {".quant_map": _four_bits.TABLES[self.kind]}
        if self.nested:
            sizes[".nested_absmax"] = -(-blocks // group)
            tables[".nested_quant_map"] = _four_bits.levels()
        for end, want in sizes.items():
            header = self.tensors[f"{self.name}{end}"]
            have = math.prod(header.shape) * (_ITEMS.get(header.dtype, 1) if end == "" else 1)
            if have != want:
                raise ValueError(f"{self.name}{end} holds {have}, expected {want} for {shape}")
        for end, table in tables.items():
            own = self._read(end)
            if own.shape != table.shape or not np.allclose(own, table, rtol=0, atol=_NEAR):
                raise ValueError(f"{self.name}{end} is another table than that of {self.kind}")
        return _State(block, offset, dtype)

    def _scales(self) -> np.ndarray:
        """float32, one a block."""
        scales = self._read(".absmax").reshape(-1)
        if not self.nested:
            return scales.astype(np.float32)
        each = np.repeat(self._read(".nested_absmax").reshape(-1), _four_bits.GROUP)
        return _four_bits.levels()[scales] * each[: scales.size] + np.float32(self._state.offset)

    def _bytes(self) -> np.ndarray:
        """Of whole blocks."""
        data = np.ascontiguousarray(self._read("")).reshape(-1).view(np.uint8)
        return np.pad(data, (0, -data.size % (self._state.block // 2)))

    def _decoded(self) -> np.ndarray:
        block = self._state.block  # before the rest: it says what does not fit
        data, scales = self._bytes(), self._scales()
        numbers = _pairs(self.kind)[data].reshape(scales.size, block)
        numbers *= scales[:, None]
        matrix = numbers.reshape(-1)[: math.prod(self.shape)].reshape(self._matrix)
        return matrix.T if self.turned else matrix

    def _kept(self) -> Kept:
        block, (out, inputs) = self._state.block, self._matrix
        flat = inputs % block != 0
        count = -(-out * inputs // block)
        rows, per_row = ((), count) if flat else ((out,), inputs // block)
        by_byte, by_block = (*rows, per_row * block // 2), (*rows, per_row)
        its = {"format": self.kind, "block": block, "flat": flat}
        data = all_at_once(by_byte, self._bytes) if flat else self._lies("", by_byte, _UINT8)
        grain = by_byte if flat else (1, block // 2)
        codes = Tensor(by_byte, grain, lambda box: _four_bits.of_neighbours(data.read(box), block))
        scales = all_at_once(by_block, lambda: self._scales().reshape(by_block))
        if self.tensors[f"{self.name}.absmax"].dtype == "F32":
            scales = self._lies(".absmax", by_block, _FLOAT32)
        plain = Kept(
            FourBitWeight,
            tuple({**its, "scale_scales": None, "offset": None}.items()),
            {"codes": Numbers(codes, _UINT8), "scales": Numbers(scales, _FLOAT32)},
            rows=None if flat else 1,
            turned=self.turned,
        )
        if not self.nested:
            return plain
        groups = (-(-count // _four_bits.GROUP),)
        most = all_at_once(groups, lambda: self._read(".nested_absmax").reshape(groups))
        offset = all_at_once((), lambda: np.array(self._state.offset))
        arrays = {
            "codes": Numbers(codes, _UINT8),
            "scales": Numbers(self._lies(".absmax", by_block, _UINT8), _UINT8),
            "scale_scales": Numbers(most, _FLOAT32),
            "offset": Numbers(offset, _FLOAT32),
        }
        # Each matrix has groups and a mean of its own. Beside others in one array its scales are
        # decoded: 0.0625 bytes a weight with blocks of 64, in the place of 0.0159.
        apart = None if flat else plain
        return Kept(
            FourBitWeight, tuple(its.items()), arrays, rows=None, apart=apart, turned=self.turned
        )

    def _lies(self, end: str, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        """One of its tensors by rows and blocks, of which a part can be read."""
        header = self.tensors[f"{self.name}{end}"]
        return as_it_lies(header.file, header.start, shape, dtype)


_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
_ITEMS = {"BF16": 2, "F16": 2, "F32": 4}  # bytes that are stored as numbers


def _pairs(kind: str) -> np.ndarray:
    """The two numbers of each byte, that of its high bits first."""
    table = _four_bits.TABLES[kind]
    return np.stack([table[np.arange(256) // 16], table[np.arange(256) % 16]], axis=-1)
