"""nf4 and fp4: blocks of numbers of 4 bits out of a table of 16, and a scale for each block.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): section 3 and appendix E for the numbers of nf4,
double quantisation for the scales. Tables and blocks are those of bitsandbytes, but a byte holds a
number of the block's first half and one of its second, as in GGUF: what is decoded from all low
bits and from all high ones is laid side by side, which devices do faster than number by number.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jlora._lowrank import RANK, Axes, Dims
from jlora._quantised._block_format import bytes_of_nibbles, nibbles, side_by_side
from jlora._quantised._lookup import looked_up
from jlora._quantised._rows import Rows, before, matrices, rows_of, weight_of
from jlora._quantised._weight import QuantizedWeight

_BLOCK = 64  # numbers to a scale
GROUP = 256  # scales to a scale of theirs

_NORMAL = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# E2M1 over its largest, but for the smallest number.
_FLOATING = (0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
TABLES = {
    "nf4": np.array(_NORMAL, np.float32),
    "fp4": np.array([*_FLOATING, *(-each for each in _FLOATING)], np.float32),
}


@functools.cache
def levels() -> np.ndarray:
    """The 256 of a scale, float32, rising from below -0.99 to 1: finer towards zero.

    In each power of ten below 1 there are twice as many as in the one before it.
    """
    found = [0.0, 1.0]
    for power in range(7):
        edges = _edges(2**power)
        middles = np.float32(10.0 ** (power - 6)) * ((edges[:-1] + edges[1:]) / 2)
        found += [*middles, *-middles]
    return np.array(sorted(found), np.float32)


def _edges(parts: int) -> np.ndarray:
    """float32 from 0.1 to 1, each counted from the nearer end and rounded once, as torch does."""
    low = np.float32(0.1)
    step, at = np.float64((1 - low) / np.float32(parts)), np.arange(parts + 1)
    near = at < (parts + 1) // 2
    return np.where(near, low + step * at, 1 - step * (parts - at)).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FourBitWeight(QuantizedWeight):
    """Rows of blocks along the inputs, or along the whole of a matrix where it is `flat`.

    The scales are float32; or those of a matrix are quantised together (double quantisation).
    """

    codes: jax.Array  # uint8 (*stack, *outputs, bytes); the first half of a block is the low bits
    scales: jax.Array  # (*stack, *outputs, blocks): float32, or uint8 where these have scales
    scale_scales: jax.Array | None  # float32 (*stack, groups) of 256, one row behind the other
    offset: jax.Array | None  # float32 (*stack,): the mean scale
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})
    format: str = dataclasses.field(default="nf4", metadata={"static": True})
    block: int = dataclasses.field(default=_BLOCK, metadata={"static": True})
    flat: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def encoded(cls, weight: jax.Array, axes: Axes, format: str) -> Self:
        parts = _encoded(weight, Rows.of(axes), _BLOCK, nested=True)
        return cls(*parts, weight.shape, weight.dtype, axes, format)

    @property
    def encodes(self) -> bool:
        return self.format == "nf4"

    @property
    def exact(self) -> bool:
        return self.scale_scales is None  # scales of scales are decoded as the device rounds

    def dimensions(self) -> dict[str, Dims]:
        rows, stack = (*before(self._rows), RANK), self.axes.stack
        found: dict[str, Dims] = {"codes": rows, "scales": rows}
        if self.scale_scales is not None:
            found |= {"scale_scales": (*stack, RANK), "offset": stack}
        return found

    @property
    def of_a_block(self) -> dict[str, int]:
        return {} if self.flat else {"codes": self.block // 2, "scales": 1}

    def plain(self) -> jax.Array:
        scales = self._scales()[..., None]
        codes = nibbles(self.codes.reshape(*scales.shape[:-1], self.block // 2))
        numbers = (looked_up(TABLES[self.format], half) * scales for half in codes)
        return weight_of(side_by_side(numbers, self.dtype), self._rows, self.shape)

    def for_rows(self, dim: int) -> Self:
        """With scales that are decoded, one number for each block: any row is there by itself."""
        return dataclasses.replace(self, scales=self._scales(), scale_scales=None, offset=None)

    @property
    def _rows(self) -> Rows:
        return matrices(self.axes) if self.flat else Rows.of(self.axes)

    def _scales(self) -> jax.Array:
        """float32 (*stack, *outputs, blocks)."""
        if self.scale_scales is None or self.offset is None:
            return self.scales
        shape = self.scales.shape
        stack = shape[: len(self.axes.stack)]
        count = math.prod(shape[len(stack) :])
        each = jnp.repeat(self.scale_scales, GROUP, axis=-1)[..., :count].reshape(shape)
        offset = self.offset.reshape(*stack, *(1,) * (len(shape) - len(stack)))
        return looked_up(levels(), self.scales) * each + offset

    def like(self, weight: jax.Array) -> Self:
        """Matrices that say the same keep their bytes: their blocks share scales of scales."""
        nested, stack = self.scale_scales is not None, self.axes.stack
        parts = _encoded(weight, self._rows, self.block, nested=nested)
        new = dataclasses.replace(self, **parts._asdict())
        others = tuple(dim for dim in range(weight.ndim) if dim not in stack)
        same = (weight == self.plain()).all(axis=others)
        kept = [sorted(stack).index(dim) for dim in stack]
        same = jnp.transpose(same, kept)

        def chosen(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(same.reshape(*same.shape, *(1,) * (old.ndim - same.ndim)), old, new)

        return jax.tree.map(chosen, self, new)


class _Encoded(NamedTuple):
    codes: jax.Array
    scales: jax.Array
    scale_scales: jax.Array | None
    offset: jax.Array | None


def _encoded(weight: jax.Array, rows: Rows, block: int, *, nested: bool) -> _Encoded:
    """The arrays of a leaf of nf4."""
    blocks = rows_of(weight, rows, block).astype(jnp.float32)
    scales = jnp.abs(blocks).max(axis=-1)
    numbers = blocks / jnp.where(scales == 0, 1, scales)[..., None]
    codes = bytes_of_nibbles(_nearest(TABLES["nf4"], numbers))
    codes = codes.reshape(*codes.shape[:-2], codes.shape[-2] * codes.shape[-1])
    if not nested:
        return _Encoded(codes, scales, None, None)
    stack = scales.shape[: len(rows.stack)]
    flat = scales.reshape(*stack, -1)
    offset = flat.mean(axis=-1)
    flat = flat - offset[..., None]
    groups = jnp.pad(flat, [(0, 0)] * len(stack) + [(0, -flat.shape[-1] % GROUP)])
    groups = groups.reshape(*stack, -1, GROUP)
    most = jnp.abs(groups).max(axis=-1)
    found = _nearest(levels(), groups / jnp.where(most == 0, 1, most)[..., None])
    found = found.reshape(*stack, -1)[..., : flat.shape[-1]]
    return _Encoded(codes, found.reshape(scales.shape), most, offset)


def _nearest(levels: np.ndarray, values: jax.Array) -> jax.Array:
    """uint8: where in the rising levels the nearest one stands."""
    between = (levels[:-1].astype(np.float64) + levels[1:]) / 2
    return jnp.searchsorted(jnp.asarray(between, values.dtype), values).astype(jnp.uint8)


def of_neighbours(data: np.ndarray, block: int) -> np.ndarray:
    """These bytes from bitsandbytes', that hold two neighbours each, the first high."""
    numbers = np.stack([data >> 4, data & 15], axis=-1).reshape(-1, 2, block // 2)
    return (numbers[:, 0] | numbers[:, 1] << 4).reshape(data.shape)
