"""What flows through the walk in place of an adapted weight: ``w + sum of a b``, never formed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._lowrank import RANK as RANK
from jlora._lowrank import Factor, LoraWeight, add, multiply


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
class Term:
    """One product A B, added to the whole of a weight or to a window of it."""

    a: Factor
    b: Factor
    # (dimension, start, size) where the term covers a part: after concatenation of weights
    window: tuple[tuple[int, int, int], ...] = dataclasses.field(
        default=(), metadata={"static": True}
    )

    @property
    def rank(self) -> int:
        return self.a.array.shape[self.a.dims.index(RANK)]

    def covers(self, dim: int) -> tuple[bool, bool]:
        """Whether A and whether B has a dimension: both for a stack, neither where it repeats."""
        return dim in self.a.dims, dim in self.b.dims

    def map(self, change: Callable[[Factor], Factor], window: Any = None) -> Term:
        """The same change to both factors; the window stays unless a new one is given."""
        window = self.window if window is None else tuple(window)
        return Term(change(self.a), change(self.b), window)

    def scaled(self, change: Callable[[jax.Array], jax.Array]) -> Term:
        """The term with a linear change of its value, made on A."""
        return dataclasses.replace(self, a=Factor(change(self.a.array), self.a.dims))

    def expand(self, shape: tuple[int, ...]) -> jax.Array:
        """A B as an array that adds to one of ``shape``."""
        product = multiply(self.a, self.b, ndim=len(shape))
        return pad(product, shape, {dim: (start, size) for dim, start, size in self.window})


def pad(array: jax.Array, shape: tuple[int, ...], window: dict[int, tuple[int, int]]) -> jax.Array:
    """Zeros of ``shape`` (on the window's dimensions) with the array in the window."""
    if not window:
        return array
    whole = [(0, 0, 0)] * array.ndim
    for dim, (start, size) in window.items():
        if array.shape[dim] != size:  # a part that repeats
            array = jnp.broadcast_to(array, (*array.shape[:dim], size, *array.shape[dim + 1 :]))
        whole[dim] = (start, shape[dim] - start - size, 0)
    return lax.pad(array, jnp.zeros((), array.dtype), whole)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """The array ``w + sum of the terms``, as data: a pytree of its parts.

    ``w`` went through every movement that the model made (transpose, cast, slice) and the factors
    through what is left of it on the dimensions that they cover. The factors keep their own dtype
    until they meet an operation.
    """

    w: jax.Array  # before the cast
    terms: tuple[Term, ...]
    origin: Origin = dataclasses.field(metadata={"static": True})
    # rows were chosen (a lookup) or summed: no longer a weight, expanding it is that use's product
    activation: bool = dataclasses.field(default=False, metadata={"static": True})
    # the dtype that the model cast w to, if it did; made anew at each use
    cast: Any = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w.shape

    @property
    def ndim(self) -> int:
        return self.w.ndim

    @property
    def dtype(self) -> Any:
        return self.w.dtype if self.cast is None else self.cast

    @property
    def base(self) -> jax.Array:
        """W alone, as the model would see it."""
        return self.w if self.cast is None else self.w.astype(self.cast)

    def multiply_base(self, product: Callable[..., jax.Array], *operands: Any) -> jax.Array:
        """``product(W, *operands)``; a cast copy of W is made again for the gradient, not kept."""
        if self.cast is None:
            return product(self.w, *operands)
        return jax.checkpoint(lambda w, *rest: product(w.astype(self.cast), *rest))(
            self.w, *operands
        )

    def replace(self, **changes: Any) -> Adapted:
        return dataclasses.replace(self, **changes)

    def expand(self) -> jax.Array:
        """The plain array: the sum in float32 or wider, cast once."""
        total = self.base
        for term in self.terms:
            total = add(total, term.expand(self.shape))
        return total


def adapt(weight: jax.Array, node: LoraWeight, path: str) -> Adapted:
    """The value in flight for an adapted leaf."""
    return Adapted(weight, (Term(*node.factors()),), Origin(path))
