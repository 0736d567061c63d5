"""nf4: blocks of 64 numbers of 4 bits that a normal distribution spaces; scales in 8 bits.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): section 3 and appendix E for the 16 numbers, double
quantisation for the scales. The numbers and the 256 levels of a scale are those of bitsandbytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jlora._frozen_leaf import FrozenLeaf
from jlora._lowrank import RANK, Axes, Dims
from jlora._quantised._block_format import bytes_of_nibbles, nibbles, side_by_side
from jlora._quantised._lookup import looked_up
from jlora._quantised._rows import before, rows_of, weight_of
from jlora._quantised._weight import QuantizedWeight

_BLOCK = 64  # numbers to a scale
_GROUP = 256  # scales to a scale of theirs


@functools.cache
def _numbers() -> np.ndarray:
    """The 16, float32, rising from -1 to 1: quantiles of the normal distribution, and 0."""
    end, normal = 0.9677083, statistics.NormalDist()
    positive = [normal.inv_cdf(p) for p in np.linspace(end, 0.5, 9)[:-1]]
    negative = [-normal.inv_cdf(p) for p in np.linspace(end, 0.5, 8)[:-1]]
    found = np.array(sorted([*positive, 0.0, *negative]))
    return (found / found.max()).astype(np.float32)


@functools.cache
def _levels() -> np.ndarray:
    """The 256 of a scale, float32, rising from below -0.99 to 1: finer towards zero.

    In each power of ten below 1 there are twice as many as in the one before it.
    """
    found = [0.0, 1.0]
    for power in range(7):
        edges = np.linspace(0.1, 1, 2**power + 1, dtype=np.float32)
        middles = 10.0 ** (power - 6) * ((edges[:-1] + edges[1:]) / 2)
        found += [*middles, *-middles]
    return np.array(sorted(found), np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nf4Weight(QuantizedWeight):
    """Rows of blocks along the inputs; the scales of a matrix are quantised together."""

    codes: jax.Array  # uint8 (*stack, *outputs, blocks * 32): low halves are a block's first 32
    scale_codes: jax.Array  # uint8 (*stack, *outputs, blocks)
    scale_scales: jax.Array  # float32 (*stack, groups) of 256 scales, one row behind the other
    offset: jax.Array  # float32 (*stack,): the mean scale
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})
    format = "nf4"

    @classmethod
    def encoded(cls, weight: jax.Array, axes: Axes, format: str) -> Self:
        blocks = rows_of(weight, axes, _BLOCK).astype(jnp.float32)
        scales = jnp.abs(blocks).max(axis=-1)
        codes = _nearest(_numbers(), blocks / jnp.where(scales == 0, 1, scales)[..., None])
        stack = scales.shape[: len(axes.stack)]
        flat = scales.reshape(*stack, -1)
        offset = flat.mean(axis=-1)
        flat = flat - offset[..., None]
        groups = jnp.pad(flat, [(0, 0)] * len(stack) + [(0, -flat.shape[-1] % _GROUP)])
        groups = groups.reshape(*stack, -1, _GROUP)
        most = jnp.abs(groups).max(axis=-1)
        levels = _nearest(_levels(), groups / jnp.where(most == 0, 1, most)[..., None])
        levels = levels.reshape(*stack, -1)[..., : flat.shape[-1]]
        return cls(
            bytes_of_nibbles(codes).reshape(*codes.shape[:-2], -1),
            levels.reshape(scales.shape),
            most,
            offset,
            weight.shape,
            weight.dtype,
            axes,
        )

    @property
    def exact(self) -> bool:
        return False  # scales are made, or decoded, as the device rounds

    def dimensions(self) -> dict[str, Dims]:
        first, stack = before(self.axes), self.axes.stack
        return {
            "codes": (*first, RANK),
            "scale_codes": (*first, RANK),
            "scale_scales": (*stack, RANK),
            "offset": stack,
        }

    @property
    def of_a_block(self) -> dict[str, int]:
        return {"codes": _BLOCK // 2, "scale_codes": 1}

    def plain(self) -> jax.Array:
        return self._scaled().plain()

    def for_rows(self, dim: int) -> FrozenLeaf:
        return self._scaled()  # a scale is one number of 64

    def _scaled(self) -> _Scaled:
        return _Scaled(self.codes, self._scales(), self.shape, self.dtype, self.axes)

    def _scales(self) -> jax.Array:
        """float32 (*stack, *outputs, blocks)."""
        shape = self.scale_codes.shape
        stack = shape[: len(self.axes.stack)]
        count = math.prod(shape[len(stack) :])
        each = jnp.repeat(self.scale_scales, _GROUP, axis=-1)[..., :count].reshape(shape)
        offset = self.offset.reshape(*stack, *(1,) * (len(shape) - len(stack)))
        return looked_up(_levels(), self.scale_codes) * each + offset

    def like(self, weight: jax.Array) -> Self:
        """Matrices that say the same keep their bytes: their blocks share scales of scales."""
        new, stack = self.encoded(weight, self.axes, "nf4"), self.axes.stack
        others = tuple(dim for dim in range(weight.ndim) if dim not in stack)
        same = (weight == self.plain()).all(axis=others)
        kept = [sorted(stack).index(dim) for dim in stack]
        same = jnp.transpose(same, kept)

        def chosen(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(same.reshape(*same.shape, *(1,) * (old.ndim - same.ndim)), old, new)

        return jax.tree.map(chosen, self, new)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Scaled(FrozenLeaf):
    """The same with scales that are decoded: any row can be taken by itself."""

    codes: jax.Array  # as there
    scales: jax.Array  # float32 (*stack, *outputs, blocks)
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})

    def dimensions(self) -> dict[str, Dims]:
        return dict.fromkeys(("codes", "scales"), (*before(self.axes), RANK))

    def plain(self) -> jax.Array:
        scales = self.scales[..., None]
        codes = nibbles(self.codes.reshape(*self.scales.shape, _BLOCK // 2))
        blocks = side_by_side((looked_up(_numbers(), q) * scales for q in codes), self.dtype)
        return weight_of(blocks, self.axes, self.shape)


def _nearest(levels: np.ndarray, values: jax.Array) -> jax.Array:
    """uint8: where in the rising levels the nearest one stands."""
    between = (levels[:-1].astype(np.float64) + levels[1:]) / 2
    return jnp.searchsorted(jnp.asarray(between, values.dtype), values).astype(jnp.uint8)
