"""A leaf that a method shall adapt, as `split` knows it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jlora import _placement
from jlora._lowrank import Axes, wide


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf that a method shall adapt, as `split` knows it.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> leaf = jlora.extend.Leaf(
        ...     path="layers/kernel", key=jax.random.key(0), shape=(3, 7, 5),
        ...     axes=jlora.Axes(inputs=(1,), outputs=(2,), stack=(0,)), rank=2,
        ...     scaling=jnp.float32(8), dropout=None, init="kaiming", dtype="float32", options={},
        ... )
        >>> leaf.stack, leaf.inputs, leaf.outputs
        ((3,), (7,), (5,))
    """

    key: jax.Array  # of this leaf alone, from its path
    shape: tuple[int, ...]
    axes: Axes
    rank: int  # the highest, where layers of its stack differ
    # float32; () for all alike, else (*stack, rank): zero where a layer has a lower rank
    scaling: jax.Array
    dropout: jax.Array | None  # the rate, float32; None where nothing drops
    init: str
    dtype: str  # of A and B
    options: Mapping[str, Any]
    weight: Any = None  # the array; None unless the method reads it
    # None in `Method.start`, which is compiled once for all leaves that are alike: what depends on
    # the path depends on the key
    path: str | None = None

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the stack dimensions."""
        return tuple(self.shape[dim] for dim in self.axes.stack)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The sizes of the input dimensions."""
        return tuple(self.shape[dim] for dim in self.axes.inputs)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The sizes of the output dimensions."""
        return tuple(self.shape[dim] for dim in self.axes.outputs)

    @property
    def matrices(self) -> jax.Array:
        """The weight as ``(*stack, inputs, outputs)``, float32 or wider, whole on every device."""
        axes = self.axes
        moved = jnp.transpose(
            _placement.whole(self.weight), (*axes.stack, *axes.inputs, *axes.outputs)
        )
        sizes = math.prod(self.inputs), math.prod(self.outputs)
        return moved.reshape(*self.stack, *sizes).astype(wide(self.weight.dtype))
