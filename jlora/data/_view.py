"""Rows that are known by their numbers, each read when it is asked for."""

from __future__ import annotations

import abc
import operator
from collections.abc import Sequence
from typing import Any, Generic, Self, SupportsIndex, TypeVar, overload

import numpy as np

Row = TypeVar("Row", covariant=True)


class View(Sequence[Row], Generic[Row]):
    """A sequence whose slices are views of the same rows."""

    @abc.abstractmethod
    def pick(self, which: Sequence[int] | np.ndarray) -> Self:
        """These of the rows, in this order.

        Args:
            which: their indices.
        """

    @abc.abstractmethod
    def _row(self, at: int) -> Row:
        """One row; the index is within, and may count from the end."""

    @overload
    def __getitem__(self, at: SupportsIndex) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: SupportsIndex | slice) -> Any:
        if isinstance(at, slice):
            return self.pick(np.arange(len(self))[at])
        at = operator.index(at)
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {len(self)}")
        return self._row(at)
