"""What flows through the walk in place of a weight: ``gain * (w + terms)``, never formed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jlora import _placement
from jlora._input_filter import InputFilter
from jlora._lift._movement import Movement
from jlora._lowrank import (
    RANK,
    Dims,
    Factor,
    Product,
    add_deltas,
    along,
    form_elementwise,
    promoted,
)


class Decline(Exception):  # noqa: N818 - a verdict, not an error
    """Raised by a rule: this equation needs the merged weight, and the message says why.

    Example:
        >>> from jlora import extend
        >>> @extend.rule("my_sort")
        ... def my_sort(walk, eqn, value):
        ...     raise extend.Decline("the order depends on the values")
    """


class Origin(str):
    """The path of the leaf that a term came from.

    All origins are equal, so that a jitted layer called with twenty adapted leaves of one shape is
    traced once.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    def __hash__(self) -> int:
        return 0


Window = tuple[int, int, int]  # (dimension, start, size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term(Product):
    """One product, added to the whole of a weight or to a window of it.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora.extend import RANK, Factor, Term
        >>> term = Term(Factor(jnp.ones((7, 2)), (0, RANK)), Factor(jnp.ones((2, 5)), (RANK, 1)))
        >>> term.rank, term.covers(0)  # A has the inputs, B has not
        (2, (True, False))
    """

    origins: tuple[Origin, ...] = dataclasses.field(default=(), metadata={"static": True})
    # where the term covers a part: after weights were put side by side
    window: tuple[Window, ...] = dataclasses.field(default=(), metadata={"static": True})
    filter: InputFilter | None = None  # what the factors get of an activation, if not all of it
    # bool: where an index was out of bounds nothing is added, and no gradient comes from there
    present: Factor | None = None

    @property
    def rank(self) -> int:
        return self.a.array.shape[self.a.dims.index(RANK)]

    def covers(self, dim: int) -> tuple[bool, bool]:
        """Whether A and whether B has a dimension: both for a stack, neither where it repeats."""
        return dim in self.a.dims, dim in self.b.dims

    def map(self, change: Callable[[Factor], Factor], window: Any = None) -> Term:
        """The same change to all factors; the window stays unless a new one is given."""
        return dataclasses.replace(
            self,
            a=change(self.a),
            b=change(self.b),
            scaling=None if self.scaling is None else change(self.scaling),
            gain=None if self.gain is None else change(self.gain),
            window=self.window if window is None else tuple(window),
            filter=None if self.filter is None else self.filter.moved(change),
            present=None if self.present is None else change(self.present),
        )

    def parted(self) -> tuple[Factor, Factor, Factor | None]:
        """A, B and a scaling over the rank alone; B has what differs along other dimensions."""
        two = self.two_factors()
        if two.scaling is None or {*two.scaling.dims} <= {RANK}:
            return two.a, two.b, two.scaling
        return two.a, two.scaled_b, None

    def on_a(self, change: Callable[[jax.Array], jax.Array]) -> Term:
        """The term with a linear change of its value, made on A."""
        return dataclasses.replace(self, a=Factor(change(self.a.array), self.a.dims))

    def filled(self, dims: Iterable[int], shape: tuple[int, ...]) -> Term:
        """The term without windows on these dimensions: zeros where its window ended."""
        windows = {dim: (start, size) for dim, start, size in self.window if dim in set(dims)}
        if not windows:
            return self
        a = self.a
        for dim in windows.keys() - {*self.a.dims, *self.b.dims}:  # a part that repeats
            size = windows[dim][1]
            a = Factor(jnp.broadcast_to(a.array, (size, *a.array.shape)), (dim, *a.dims))

        def whole(factor: Factor) -> Factor:
            return Factor(padded(factor.array, shape, windows, factor.dims), factor.dims)

        rest = [window for window in self.window if window[0] not in windows]
        return dataclasses.replace(self, a=a).map(whole, rest)

    def masked(self, delta: jax.Array, dims: Sequence[int]) -> jax.Array:
        """What the term adds along these dimensions, where an index was within bounds."""
        if self.present is None:
            return delta
        return jnp.where(along(self.present, dims), delta, jnp.zeros((), delta.dtype))

    def merged(self, shape: tuple[int, ...]) -> jax.Array:
        """``scaling * A B`` as an array that adds to one of ``shape``."""
        window = {dim: (start, size) for dim, start, size in self.window}
        dims = range(len(shape))
        return padded(self.masked(self.delta(len(shape)), dims), shape, window, dims)


def gains(values: Iterable[Any], dims: Iterable[int] = ()) -> tuple[Dims, list[Any]] | None:
    """The gains of several values over dimensions that all share, 1 for a value without.

    The dimensions are those of all gains and ``dims``. None where no value has a gain.
    """
    each = [value.gain if isinstance(value, Weight) else None for value in values]
    present = [gain for gain in each if gain is not None]
    if not present:
        return None
    order = tuple(sorted({*dims, *(dim for gain in present for dim in gain.dims)}))
    ones = jnp.ones((1,) * len(order), jnp.float32)
    return order, [ones if gain is None else along(gain, order) for gain in each]


def padded(
    array: jax.Array,
    shape: tuple[int, ...],
    windows: dict[int, tuple[int, int]],
    dims: Sequence[int],
) -> jax.Array:
    """Zeros of ``shape`` on the windows' dimensions, and the array in the windows.

    ``dims`` are the dimensions of the array's axes.
    """
    config = [(0, 0, 0)] * array.ndim
    for axis, dim in enumerate(dims):
        if dim in windows:
            start, size = windows[dim]
            if array.shape[axis] != size:  # a part that repeats
                array = jnp.broadcast_to(
                    array, (*array.shape[:axis], size, *array.shape[axis + 1 :])
                )
            config[axis] = (start, shape[dim] - start - size, 0)
    if not any(map(any, config)):
        return array
    return lax.pad(array, jnp.zeros((), array.dtype), config)


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


class Base:
    """What may stand in a `Weight` for W and is no array: it moves by itself."""

    shape: tuple[int, ...]
    dtype: Any
    origin: str = ""  # the path of the leaf, where it is one
    stacks: ClassVar[bool] = False  # whether what the steps of a loop return can be one again
    decodes: ClassVar[bool] = False  # whether rows of it are an array, made of stored arrays

    @property
    def size(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size

    def astype(self, dtype: Any) -> Base:
        """The same, as an array of this dtype would stand there."""
        raise NotImplementedError

    def renamed(self, origin: str) -> Base:
        """The same, of a leaf with another path."""
        raise NotImplementedError

    def plain(self) -> Any:
        """The array that it stands for."""
        raise NotImplementedError

    def multiply(
        self, product: Callable[..., Any], *operands: Any, kept: tuple[int | None, ...]
    ) -> Any:
        """``product(W, *operands)``; see `Weight.multiply`."""
        raise NotImplementedError

    def move(self, movement: Movement, factor: Callable[[Factor], Factor]) -> Base:
        """The same after a movement, which ``factor`` makes of arrays on some of W's dimensions.

        Raises:
            Decline: where it can't be moved as it is.
        """
        raise NotImplementedError

    def rows(self, dim: int, choose: Callable[[Any, int], Any]) -> Any:
        """The plain array of places along a dimension, where it `decodes`."""
        raise NotImplementedError

    def steps(self, movement: Movement) -> tuple[Any, Callable[[Any], Base]]:
        """Arrays to scan along the first dimension, and what a step makes of its part of them."""
        raise NotImplementedError

    def of_all_steps(self, shape: tuple[int, ...], movement: Movement) -> Base:
        """The same with a new first dimension, where it `stacks`."""
        raise NotImplementedError


def fold_in(values: Iterable[Any], place: Any) -> list[Any]:
    """The values with each filter that of this place: an equation's number, a step of a loop.

    What stands there twice stays one.
    """
    made: dict[int, Any] = {}
    return [
        made.setdefault(id(value), value.fold_in(place))
        if isinstance(value, Weight) and value.drops
        else value
        for value in values
    ]


def origins(value: Any) -> list[str]:
    """The leaves that a value is made of, in the order of its terms; none if it is an array."""
    if not isinstance(value, Weight):
        return []
    names = [str(origin) for term in value.terms for origin in term.origins]
    return [*names, value.w.origin] if isinstance(value.w, Base) else names


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The value with its leaves under other names."""
    if not isinstance(value, Weight):
        return value
    value = value.map_terms(
        lambda term: dataclasses.replace(
            term, origins=tuple(Origin(names[origin]) for origin in map(str, term.origins))
        )
    )
    if isinstance(value.w, Base):
        value = value.replace(w=value.w.renamed(names[value.w.origin]))
    return value


def bases(values: Iterable[Any]) -> list[Any]:
    """The operands with W, as the model sees it, in each weight's place."""
    return [value.base if isinstance(value, Weight) else value for value in values]


def refuse_form(*values: Any) -> None:
    """Decline for weights that are no sum of W and products."""
    if any(isinstance(value, Weight) and value.form is not None for value in values):
        raise Decline("the weight's method makes it entry by entry")


def refuse_gain(*values: Any) -> None:
    """Decline for weights of which each output has a magnitude of its own."""
    if any(isinstance(value, Weight) and value.gain is not None for value in values):
        raise Decline("the weight's magnitudes can't be kept apart through it")


def relabel(factor: Factor, new: dict[int, int]) -> Factor:
    """The factor with its dimensions renamed; its array does not move."""
    return Factor(factor.array, tuple(RANK if dim == RANK else new[dim] for dim in factor.dims))


def gained(x: jax.Array, gain: jax.Array) -> jax.Array:
    """The product with a gain, in x's dtype; in the wider of both until then."""
    wide = promoted(x.dtype, gain.dtype)
    return (x.astype(wide) * _placement.like(gain.astype(wide), x)).astype(x.dtype)
