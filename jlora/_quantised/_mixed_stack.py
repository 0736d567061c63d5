"""Layers of one weight in several formats: a short stack for each, and where each layer lies."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax import lax

from jlora._lowrank import Axes, Dims
from jlora._quantised._weight import QuantizedWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixedStack(QuantizedWeight):
    """A stack as a file has it whose layers differ in their format, each as it was stored.

    In a loop over layers the format's branch alone is computed.
    """

    stacks: tuple[QuantizedWeight, ...]  # one a format, its layers in their order
    which: jax.Array  # int32 (layers,): the stack that holds each
    at: jax.Array  # int32 (layers,): its place there
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})  # the first dimension is the layers'

    @property
    def format(self) -> str:
        return " and ".join(stack.format for stack in self.stacks)

    @property
    def exact(self) -> bool:
        return all(stack.exact for stack in self.stacks)

    def dimensions(self) -> dict[str, Dims]:
        return {"which": (0,), "at": (0,)}

    def plain(self) -> jax.Array:
        if len(self.which) == 1:
            return self._layer(self.which[0], self.at[0])[None]
        return lax.map(lambda place: self._layer(*place), (self.which, self.at))

    def _layer(self, which: jax.Array, at: jax.Array) -> jax.Array:
        """One layer, without its dimension."""

        def branch(stack: QuantizedWeight) -> Any:
            def decoded(at: jax.Array) -> jax.Array:
                one = jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, at, 1), stack)
                return one.with_arrays({}, (1, *stack.shape[1:])).plain()[0]

            return decoded

        return lax.switch(which, [branch(stack) for stack in self.stacks], at)
