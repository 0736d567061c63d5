"""What flows through the walk in place of an adapted weight: ``w + sum of a b``, never formed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jlora._lowrank import RANK, Factor, LoraWeight, add, multiply

__all__ = ["RANK", "Adapted", "Factor", "Opaque", "Origin", "Term", "adapt", "membership"]

Term = tuple[Factor, Factor]


class Opaque(Exception):  # noqa: N818 - a verdict, not an error
    """Raised by a rule: this equation needs the merged weight, and the message says why."""


class Origin(str):
    """The path of the leaf that a value came from.

    All origins are equal, so that a jitted layer called with twenty adapted leaves of one shape is
    traced once.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    def __hash__(self) -> int:
        return 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """The array ``w + sum(a b for a, b in terms)``, as data: a pytree of its parts.

    ``w`` went through every movement that the model made (transpose, cast, slice) and the factors
    through what is left of it on the dimensions that they cover. The factors keep their own dtype
    until they meet an operation.
    """

    w: jax.Array
    terms: tuple[Term, ...]
    origin: Origin = dataclasses.field(metadata={"static": True})
    # rows were chosen along an input dimension: expanding it now is the lookup's own product
    looked_up: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w.shape

    @property
    def ndim(self) -> int:
        return self.w.ndim

    @property
    def dtype(self) -> Any:
        return self.w.dtype

    def replace(self, **changes: Any) -> Adapted:
        return dataclasses.replace(self, **changes)

    def expand(self) -> jax.Array:
        """The plain array: the sum in float32 or wider, cast once."""
        total = self.w
        for a, b in self.terms:
            total = add(total, multiply(a, b, ndim=self.ndim))
        return total


def adapt(weight: jax.Array, node: LoraWeight, path: str) -> Adapted:
    """The value in flight for an adapted leaf."""
    return Adapted(weight, (node.factors(),), Origin(path))


def membership(term: Term, dim: int) -> tuple[bool, bool]:
    """Whether A and whether B covers a dimension: both for a stack, neither where it broadcasts."""
    a, b = term
    return dim in a.dims, dim in b.dims
