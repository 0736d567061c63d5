"""A weight whose rows are blocks of bytes, as llama.cpp's GGUF files have them."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp

from jlora._lowrank import RANK, Axes, Dims
from jlora._quantised._block_format import BlockFormat
from jlora._quantised._mxfp4 import MXFP4
from jlora._quantised._q4_0 import Q4_0
from jlora._quantised._q4_1 import Q4_1
from jlora._quantised._q4_k import Q4_K
from jlora._quantised._q5_0 import Q5_0
from jlora._quantised._q5_1 import Q5_1
from jlora._quantised._q5_k import Q5_K
from jlora._quantised._q6_k import Q6_K
from jlora._quantised._q8_0 import Q8_0
from jlora._quantised._rows import before, rows_of, weight_of
from jlora._quantised._weight import QuantizedWeight

FORMATS: dict[str, BlockFormat] = {
    its.name: its for its in (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, MXFP4)
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockWeight(QuantizedWeight):
    """Rows of blocks along the weight's inputs; a row that no whole blocks make is filled up."""

    data: jax.Array  # uint8 (*stack, *outputs, bytes of all blocks of a row)
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})
    format: str = dataclasses.field(metadata={"static": True})

    @classmethod
    def encoded(cls, weight: jax.Array, axes: Axes, format: str) -> Self:
        its = FORMATS[format]
        assert its.encode is not None  # who quantises has asked
        blocks = its.encode(rows_of(weight, axes, its.block).astype(jnp.float32))
        return cls(_in_rows(blocks), weight.shape, weight.dtype, axes, format)

    @property
    def encodes(self) -> bool:
        return FORMATS[self.format].encode is not None

    def dimensions(self) -> dict[str, Dims]:
        return {"data": (*before(self.axes), RANK)}

    @property
    def of_a_block(self) -> dict[str, int]:
        return {"data": FORMATS[self.format].size}

    def plain(self) -> jax.Array:
        blocks = FORMATS[self.format].decode(self._blocks, self.dtype)
        return weight_of(blocks, self.axes, self.shape)

    def like(self, weight: jax.Array) -> Self:
        block = FORMATS[self.format].block
        new, old = (rows_of(each, self.axes, block) for each in (weight, self.plain()))
        same = (new == old).all(axis=-1, keepdims=True)
        blocks = self.encoded(weight, self.axes, self.format)._blocks
        return dataclasses.replace(self, data=_in_rows(jnp.where(same, self._blocks, blocks)))

    @property
    def _blocks(self) -> jax.Array:
        """(*stack, *outputs, blocks, bytes)."""
        size = FORMATS[self.format].size
        return self.data.reshape(*self.data.shape[:-1], self.data.shape[-1] // size, size)


def _in_rows(blocks: jax.Array) -> jax.Array:
    """The bytes of a row side by side, as a file has them: no device fills up short dimensions."""
    return blocks.reshape(*blocks.shape[:-2], blocks.shape[-2] * blocks.shape[-1])
