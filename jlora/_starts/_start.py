"""What a start is: a function, and what `split` must know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Leaf(NamedTuple):
    """One leaf as a stack of matrices, as a start sees it."""

    key: jax.Array  # the leaf's own
    stack: tuple[int, ...]
    inputs: int
    outputs: int
    rank: int
    weight: Any  # (*stack, inputs, outputs) float32 or wider; None unless the start reads it
    scaling: jax.Array  # (*stack, rank), never zero


@dataclasses.dataclass(frozen=True)
class Start:
    """``draw(leaf)`` gives A (*stack, inputs, rank) and B (*stack, rank, outputs)."""

    draw: Callable[..., tuple[jax.Array, jax.Array]]
    moves_weight: bool = False  # A B is not zero, and is taken out of the frozen weight
    even_rank: bool = False

    def __call__(self, leaf: Leaf) -> tuple[jax.Array, jax.Array]:
        return self.draw(leaf)
