"""What flows through the walk in place of a weight: ``gain * (w + terms)``, never formed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._filter import Filter
from jlora._lift._apart import gained
from jlora._lowrank import RANK as RANK
from jlora._lowrank import Factor, Factored, Product, combine, spread
from jlora._methods import Node


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
class Term(Product):
    """One product, added to the whole of a weight or to a window of it."""

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
        """The same change to all factors; the window stays unless a new one is given."""
        window = self.window if window is None else tuple(window)
        scaling = None if self.scaling is None else change(self.scaling)
        return Term(change(self.a), change(self.b), scaling, window)

    def parted(self) -> tuple[Factor, Factor, Factor | None]:
        """A, B and a scaling over the rank alone; where it differs along a stack, B has it."""
        if self.scaling is None or {*self.scaling.dims} <= {RANK}:
            return self.a, self.b, self.scaling
        return self.a, self.scaled_b, None

    def on_a(self, change: Callable[[jax.Array], jax.Array]) -> Term:
        """The term with a linear change of its value, made on A."""
        return dataclasses.replace(self, a=Factor(change(self.a.array), self.a.dims))

    def expand(self, shape: tuple[int, ...]) -> jax.Array:
        """``scaling * A B`` as an array that adds to one of ``shape``."""
        window = {dim: (start, size) for dim, start, size in self.window}
        return pad(self.formed(len(shape)), shape, window)


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
    """The array ``gain * (w + sum of the terms)``, as data: a pytree of its parts.

    ``w`` went through every movement that the model made (transpose, cast, slice) and the factors
    through what is left of it on the dimensions that they cover. The factors keep their own dtype
    until they meet an operation.
    """

    w: jax.Array  # before the cast
    terms: tuple[Term, ...]
    origin: Origin = dataclasses.field(metadata={"static": True})
    gain: Factor | None = None  # on some of its dimensions; its rank axis has size 1
    filter: Filter | None = None  # what the factors get of an activation, if not all of it
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

    def moved(
        self, w: Any, factor: Callable[[Factor], Factor], window: Callable[[int], int] | None = None
    ) -> Adapted:
        """``w`` in W's place and ``factor`` made of all others; ``window`` renames dimensions."""

        def of(term: Term) -> Term:
            renamed = [(window(dim) if window else dim, *part) for dim, *part in term.window]
            return term.map(factor, renamed)

        return self.beside(factor).replace(w=w, terms=tuple(map(of, self.terms)))

    def beside(self, factor: Callable[[Factor], Factor]) -> Adapted:
        """``factor`` made of the gain and the filter, which cover no window."""
        return self.replace(
            gain=None if self.gain is None else factor(self.gain),
            filter=None if self.filter is None else self.filter.moved(factor),
        )

    def filtered(self, x: jax.Array, dims: tuple[int | None, ...]) -> jax.Array:
        """What the factors get of an activation; for each axis of x, the dimension it meets."""
        return x if self.filter is None else self.filter(x, dims)

    def gained(self, x: jax.Array, dims: tuple[int | None, ...]) -> jax.Array:
        """An activation times the gain; for each axis of x, the weight's dimension, if any."""
        return x if self.gain is None else gained(x, self.gain_along(dims))

    def gain_along(self, dims: tuple[int | None, ...]) -> Any:
        """The gain over these of the weight's dimensions, of size 1 where it does not vary."""
        if self.gain is None:
            return None
        return spread(self.gain, [-2 if dim is None else dim for dim in dims])

    def expand(self) -> jax.Array:
        """The plain array: the sum in float32 or wider, cast once."""
        return combine(self.base, [term.expand(self.shape) for term in self.terms], self.gain)


def at_place(values: Sequence[Any], place: Any) -> list[Any]:
    """The values with each filter that of this place: an equation's number, a step of a loop."""
    return [
        value.replace(filter=value.filter.at(place))
        if isinstance(value, Adapted) and value.filter is not None
        else value
        for value in values
    ]


def refuse_gain(*values: Any) -> None:
    """Decline for weights of which each output has a magnitude of its own."""
    if any(isinstance(value, Adapted) and value.gain is not None for value in values):
        raise Opaque("the weight's magnitudes can't be kept apart through it")


def adapt(weight: jax.Array, node: Node, path: str, filter_: Filter | None) -> Adapted | jax.Array:
    """The value in flight for an adapted leaf; a plain array where a node replaces the leaf."""
    value = node.instead_of(weight)
    if not isinstance(value, Factored):
        return value
    terms = tuple(Term(p.a, p.b, p.scaling) for p in value.products)
    return Adapted(weight, terms, Origin(path), gain=value.gain, filter=filter_)
