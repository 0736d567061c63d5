"""int8: whole numbers of 8 bits and one scale for each output, ``w = q scale``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp

from jlora._lowrank import Axes, Dims, Factor, along
from jlora._quantised._rows import before
from jlora._quantised._weight import QuantizedWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Weight(QuantizedWeight):
    """Symmetric, by output channel; a product is scaled after it is done, not its weight."""

    values: jax.Array  # int8, in the weight's shape
    scale: jax.Array  # float32 (*stack, *outputs)
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})
    format = "int8"

    @classmethod
    def encoded(cls, weight: jax.Array, axes: Axes, format: str) -> Self:
        wide = weight.astype(jnp.float32)
        most = jnp.abs(wide).max(axis=axes.inputs)
        scale = _by_output(most, axes) / 127
        each = jnp.where(scale == 0, 1, scale)
        each = along(Factor(each, before(axes)), range(weight.ndim))
        values = jnp.round(wide / each).astype(jnp.int8)
        return cls(values, scale, weight.shape, weight.dtype, axes)

    @property
    def exact(self) -> bool:
        return False  # scales are made, or decoded, as the device rounds

    def dimensions(self) -> dict[str, Dims]:
        return {"values": tuple(range(len(self.shape))), "scale": before(self.axes)}

    @property
    def separable(self) -> tuple[int, ...]:
        return tuple(range(len(self.shape)))  # the scale says the same along the inputs

    def plain(self) -> jax.Array:
        scale = along(Factor(self.scale, before(self.axes)), range(len(self.shape)))
        return (self.values.astype(jnp.float32) * scale).astype(self.dtype)

    def multiply(
        self, product: Callable[..., jax.Array], *operands: Any, kept: tuple[int | None, ...]
    ) -> jax.Array:
        dims = before(self.axes)
        if not {dim for dim in dims if self.shape[dim] != 1} <= set(kept):
            return super().multiply(product, *operands, kept=kept)
        result = product(self.values.astype(self.dtype), *operands)
        scaled = result.astype(jnp.float32) * along(Factor(self.scale, dims), kept)
        return scaled.astype(result.dtype)

    def like(self, weight: jax.Array) -> Self:
        new, inputs = self.encoded(weight, self.axes, "int8"), self.axes.inputs
        same = (weight == self.plain()).all(axis=inputs, keepdims=True)
        channels = _by_output(jnp.squeeze(same, inputs), self.axes)
        return dataclasses.replace(
            self,
            values=jnp.where(same, self.values, new.values),
            scale=jnp.where(channels, self.scale, new.scale),
        )


def _by_output(each: jax.Array, axes: Axes) -> jax.Array:
    """What lies in the order of the weight's dimensions, inputs left out, as (*stack, *outputs)."""
    dims = sorted(before(axes))
    return jnp.transpose(each, [dims.index(dim) for dim in before(axes)])
