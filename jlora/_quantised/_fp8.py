"""fp8: numbers of ``float8_e4m3fn``, and a scale for each block of outputs and inputs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._lowrank import RANK, Axes, Dims
from jlora._quantised._rows import before, weight_of
from jlora._quantised._weight import QuantizedWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fp8Weight(QuantizedWeight):
    """Matrices as a file has them, outputs first."""

    values: jax.Array  # uint8, the bits of float8_e4m3fn (*stack, *outputs, *inputs)
    scale: jax.Array  # float32 (*stack, blocks of outputs, blocks of inputs)
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})
    sizes: tuple[int, int] = dataclasses.field(metadata={"static": True})  # of a block
    format = "fp8"

    def dimensions(self) -> dict[str, Dims]:
        values = (*before(self.axes), *self.axes.inputs)
        return {"values": values, "scale": (*self.axes.stack, RANK, RANK)}

    def plain(self) -> jax.Array:
        first, stack = self.values.shape[: len(before(self.axes))], len(self.axes.stack)
        rows, columns = math.prod(first[stack:]), math.prod(self.values.shape[len(first) :])
        bits = self.values.reshape(*first[:stack], rows, columns)
        # bits until here: a compiler without such numbers would widen the stack before the loop
        wide = lax.bitcast_convert_type(bits, jnp.float8_e4m3fn).astype(jnp.float32)
        scale = self.scale
        for axis, size in zip((-2, -1), self.sizes, strict=True):
            scale = jnp.repeat(scale, size, axis=axis)
        wide *= scale[..., :rows, :columns]
        return weight_of(wide.reshape(*first, 1, columns), self.axes, self.shape).astype(self.dtype)
