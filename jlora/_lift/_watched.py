"""What stands for a weight that is only looked at: which of its dimensions are where."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from jlora._lift._base import Base
from jlora._lift._movement import Movement
from jlora._lift._weight import Weight


@dataclasses.dataclass(frozen=True)
class Watched:
    """One leaf on its way: the leaf's dimensions in each dimension of the array that it is in."""

    path: str
    dims: tuple[tuple[int, ...], ...]  # for each dimension: the leaf's dimensions in it
    shape: tuple[int, ...]  # of the leaf
    stack: frozenset[int] = frozenset()  # the leaf's dimensions that a loop runs over
    chosen: frozenset[int] = frozenset()  # the leaf's dimensions that were indexed
    spread: bool = False  # broadcast over something else, as a bias is

    def own_dims(self, dims: Iterable[int]) -> frozenset[int]:
        """The leaf's dimensions in these of the array."""
        return frozenset(source for dim in dims for source in self.dims[dim])

    @property
    def left(self) -> frozenset[int]:
        """The leaf's dimensions that are neither a stack nor chosen by an index."""
        return self.own_dims(range(len(self.dims))) - self.stack - self.chosen

    @property
    def picked(self) -> frozenset[int]:
        """The leaf's dimensions that were chosen by an index and that no loop runs over."""
        return self.chosen - self.stack

    @property
    def is_rows(self) -> bool:
        """Whether what an index has left is no matrix any more, but rows."""
        return bool(self.picked) and 0 < self._width < 2

    @property
    def is_vector(self) -> bool:
        """Whether it is rows, or a bias that is repeated."""
        return self.is_rows or (self.spread and self._width < 2)

    @property
    def _width(self) -> int:
        return sum(self.shape[dim] != 1 for dim in self.left)

    def move(self, movement: Movement) -> Watched:
        lost = self.own_dims(movement.chosen | movement.summed)
        dims = [
            tuple(
                leaf_dim for dim in sources for leaf_dim in self.dims[dim] if leaf_dim not in lost
            )
            for sources in movement.sources
        ]
        return dataclasses.replace(
            self,
            dims=tuple(dims),
            stack=self.stack | self.own_dims(movement.stacked),
            chosen=self.chosen | self.own_dims(movement.chosen),
            spread=self.spread or movement.spread,
        )


@dataclasses.dataclass(frozen=True)
class WatchedBase(Base):
    """An array of which only shape and dtype are there, and the leaves that are in it."""

    shape: tuple[int, ...]
    dtype: Any
    leaves: tuple[Watched, ...]
    seen: Callable[..., Any] = dataclasses.field(compare=False, repr=False)  # a plain value

    stacks: ClassVar[bool] = True

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @functools.cached_property
    def paths(self) -> frozenset[str]:
        return frozenset(leaf.path for leaf in self.leaves)

    def astype(self, dtype: Any) -> WatchedBase:
        return dataclasses.replace(self, dtype=dtype)

    def plain(self) -> Any:
        return self.seen(self)

    def multiply(
        self, product: Callable[..., Any], *operands: Any, kept: tuple[int | None, ...]
    ) -> Any:
        return product(self, *operands)

    def changed(self, shape: tuple[int, ...], movement: Movement) -> WatchedBase:
        """The array of this shape after a movement."""
        leaves = tuple(leaf.move(movement) for leaf in self.leaves)
        return dataclasses.replace(self, shape=tuple(shape), leaves=leaves)

    def steps(self, movement: Movement) -> tuple[Any, Callable[[Any], WatchedBase]]:
        return None, lambda _: self.changed(self.shape[1:], movement)

    def of_all_steps(self, shape: tuple[int, ...], movement: Movement) -> WatchedBase:
        return self.changed(shape, movement)


def is_rows(value: Weight) -> bool:
    """Whether all that is in a value are rows that an index chose."""
    return isinstance(value.w, WatchedBase) and all(leaf.is_rows for leaf in value.w.leaves)
