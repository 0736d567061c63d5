"""What may stand for W where it is no array: a leaf that is kept small, or only looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from jlora._lift._movement import Movement
from jlora._lowrank import Factor


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
