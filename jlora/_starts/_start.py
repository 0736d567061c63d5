"""What a start is: a function, and what `split` must know of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jlora._leaf import Leaf
from jlora._lowrank import wide


class Matrices(NamedTuple):
    """One leaf as a stack of matrices, as a start sees it."""

    key: jax.Array  # the leaf's own
    stack: tuple[int, ...]
    inputs: int
    outputs: int
    rank: int
    weight: Any  # (*stack, inputs, outputs) float32 or wider; None unless the start reads it
    scaling: jax.Array  # (*stack, rank), never zero
    dtype: Any  # float32 or wider, in which A and B are computed

    @classmethod
    def from_leaf(cls, leaf: Leaf, with_weight: bool) -> Matrices:
        """The leaf's matrices, and its weight if the start reads it."""
        scaling = jnp.broadcast_to(leaf.scaling, (*leaf.stack, leaf.rank))
        return cls(
            key=leaf.key,
            stack=leaf.stack,
            inputs=math.prod(leaf.inputs),
            outputs=math.prod(leaf.outputs),
            rank=leaf.rank,
            weight=leaf.matrices if with_weight else None,
            scaling=jnp.where(scaling == 0, 1, scaling),
            dtype=wide(leaf.dtype),
        )


@dataclasses.dataclass(frozen=True)
class Start:
    """``draw(leaf)`` gives A (*stack, inputs, rank) and B (*stack, rank, outputs)."""

    draw: Callable[..., tuple[jax.Array, jax.Array]]
    moves_weight: bool = False  # A B is not zero, and is taken out of the frozen weight
    even_rank: bool = False

    def __call__(self, leaf: Matrices) -> tuple[jax.Array, jax.Array]:
        return self.draw(leaf)
