"""What flows through the walk in place of a weight: ``gain * (w + terms)``, never formed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jlora import _placement
from jlora._lift._base import Base
from jlora._lift._movement import Movement
from jlora._lift._term import Term
from jlora._lowrank import Factor, add_deltas, along, form_elementwise, promoted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """The array ``gain * (w + sum of the terms)``, or ``form(w, *terms)``, as data.

    A pytree of its parts: ``w`` went through every movement that the model made (transpose, slice)
    and the factors through what is left of it on the dimensions that they cover. The factors keep
    their own dtype until they meet an operation. Without terms it is a frozen leaf that is no
    array, or a leaf that is only looked at.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora.extend import RANK, Factor, Term, Weight
        >>> term = Term(Factor(jnp.ones((7, 2)), (0, RANK)), Factor(jnp.ones((2, 5)), (RANK, 1)))
        >>> weight = Weight(jnp.ones((7, 5)), (term,))
        >>> weight.shape, float(weight.merged()[0, 0])  # 1 + 2
        ((7, 5), 3.0)
    """

    w: Any  # before the cast: a jax.Array, or a `Base`
    terms: tuple[Term, ...] = ()
    gain: Factor | None = None  # on some of its dimensions
    # what is made of w and the terms, entry by entry, if not their sum: `jlora.extend.Elementwise`
    form: Callable[..., Any] | None = dataclasses.field(default=None, metadata={"static": True})
    why_formed: str = dataclasses.field(default="", metadata={"static": True})
    # rows were chosen (a lookup) or summed: no longer a weight, merging it is that use's product
    rows: bool = dataclasses.field(default=False, metadata={"static": True})
    # the dtype that the model cast w to, if it did; made anew at each use
    cast: Any = dataclasses.field(default=None, metadata={"static": True})
    # in a function of each device's part: the mesh axes and the dimension that each divides; None
    # where that is not known any more
    parts: tuple[tuple[str, int | None], ...] | None = dataclasses.field(
        default=(), metadata={"static": True}
    )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w.shape

    @property
    def ndim(self) -> int:
        return len(self.w.shape)

    @property
    def size(self) -> int:
        return self.w.size

    @property
    def dtype(self) -> Any:
        return self.w.dtype if self.cast is None else self.cast

    @property
    def base(self) -> Any:
        """W alone, as the model would see it."""
        return self.w if self.cast is None else self.w.astype(self.cast)

    @property
    def thin(self) -> tuple[Term, ...]:
        """The terms that a product adds beside that of W; none where their form is no sum."""
        return self.terms if self.form is None else ()

    @property
    def drops(self) -> bool:
        """Whether an activation passes a filter on its way to a factor."""
        return any(term.filter is not None for term in self.thin)

    def replace(self, **changes: Any) -> Weight:
        return dataclasses.replace(self, **changes)

    def multiply(
        self, product: Callable[..., Any], *operands: Any, kept: tuple[int | None, ...]
    ) -> Any:
        """``product(W, *operands)``; a cast copy of W is made again for the gradient, not kept.

        ``kept`` says for each dimension of the result which of W's it is, if any.
        """
        if self.form is not None:
            return jax.checkpoint(lambda whole, *rest: product(whole.merged(), *rest))(
                self, *operands
            )
        if isinstance(self.w, Base):
            return self.base.multiply(product, *operands, kept=kept)
        if self.cast is None:
            return product(self.w, *operands)
        return jax.checkpoint(lambda w, *rest: product(w.astype(self.cast), *rest))(
            self.w, *operands
        )

    def moved(self, w: Any, movement: Movement, factor: Callable[[Factor], Factor]) -> Weight:
        """``w`` in W's place, and ``factor`` made of all others."""

        def moved_term(term: Term) -> Term:
            return term.map(factor, [(movement.new[dim], *part) for dim, *part in term.window])

        parts = self.parts
        if parts:
            parts = tuple(
                (axis, movement.new.get(-1 if dim is None else dim)) for axis, dim in parts
            )
        return self.replace(
            w=w,
            terms=tuple(map(moved_term, self.terms)),
            gain=None if self.gain is None else factor(self.gain),
            parts=parts,
        )

    def map_terms(self, change: Callable[[Term], Term]) -> Weight:
        return self.replace(terms=tuple(map(change, self.terms)))

    def filled(self, dims: Iterable[int]) -> Weight:
        """The same value; no term has a window on these dimensions."""
        return self.map_terms(lambda term: term.filled(dims, self.shape))

    def fold_in(self, place: Any) -> Weight:
        """With each filter that of this place: an equation's number, a step of a loop."""
        return self.map_terms(
            lambda term: (
                term
                if term.filter is None
                else dataclasses.replace(term, filter=term.filter.fold_in(place))
            )
        )

    def gained(self, x: jax.Array, dims: tuple[int | None, ...]) -> jax.Array:
        """An activation times the gain; for each axis of x, the weight's dimension, if any."""
        return x if self.gain is None else gained(x, self.gain_along(dims))

    def gain_along(self, dims: tuple[int | None, ...]) -> Any:
        """The gain over these of the weight's dimensions, of size 1 where it does not vary."""
        if self.gain is None:
            return None
        return along(self.gain, dims)

    def merged(self) -> Any:
        """The plain array: the sum in float32 or wider, cast once."""
        base = self.base.plain() if isinstance(self.w, Base) else self.base
        deltas = [term.merged(self.shape) for term in self.terms]
        if self.form is not None:
            return form_elementwise(self.form, base, deltas)
        return add_deltas(base, deltas, self.gain) if deltas or self.gain is not None else base


def put_together(w: Any, terms: Iterable[Term], gain: Factor | None = None) -> Weight:
    """The weight that is made of several, or of one and of arrays."""
    return Weight(w, tuple(terms), gain, parts=None)


def gained(x: jax.Array, gain: jax.Array) -> jax.Array:
    """The product with a gain, in x's dtype; in the wider of both until then."""
    wide = promoted(x.dtype, gain.dtype)
    return (x.astype(wide) * _placement.like(gain.astype(wide), x)).astype(x.dtype)
