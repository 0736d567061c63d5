"""One pending product of a weight in flight, added to the whole of it or to a window."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._input_filter import InputFilter
from jlora._lowrank import RANK, Factor, Product, along


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
