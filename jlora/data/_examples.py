"""The tokens of all examples in one array, in memory or, when they are many, in a file."""

from __future__ import annotations

import array
import itertools
import operator
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, SupportsIndex, TypeVar, overload

import numpy as np

from jlora.data._turn import Example

IN_MEMORY = 1 << 24  # numbers of 4 bytes, of tokens and of answers
Each = TypeVar("Each", bound=tuple[Any, ...])  # a named tuple of lists of numbers, and of numbers


class Examples(Sequence[Each], Generic[Each]):
    """What `encode` and `encode_labelled` make: a sequence of examples, 4 bytes a token.

    Example:
        >>> from jlora.data import Example, Examples
        >>> examples = Examples.of([Example([5, 3, 7, 1], [1, 2]), Example([5, 4], [0])])
        >>> len(examples), examples[-1]
        (2, Example(tokens=[5, 4], answers=[0]))
    """

    def __init__(self, kind: type[Each], fields: Sequence[np.ndarray], ends: np.ndarray):
        self._kind, self._alone = kind, _alone(kind)
        self._fields = fields  # of each field int32, one example after the other
        self._ends = ends  # (examples + 1, fields) int64; those of none first

    @classmethod
    def of(cls, examples: Iterable[Each]) -> Examples[Each]:
        """These examples, all of one kind.

        Args:
            examples: in any iterable.
        """
        rest = iter(examples)
        first = list(itertools.islice(rest, 1))
        return _of(type(first[0]) if first else Example, itertools.chain(first, rest))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: SupportsIndex) -> Each: ...
    @overload
    def __getitem__(self, at: slice) -> Examples[Each]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> Each | Examples[Each]:
        if isinstance(at, slice):
            return _of(self._kind, (self[each] for each in range(len(self))[at]))
        at = operator.index(at)
        if not -len(self) <= at < len(self):
            raise IndexError(f"example {at} of {len(self)}")
        at %= len(self)
        begins, ends = self._ends[at : at + 2].tolist()
        lists = (
            numbers[begin:end].tolist()
            for numbers, begin, end in zip(self._fields, begins, ends, strict=True)
        )
        return self._kind(
            *(each[0] if alone else each for each, alone in zip(lists, self._alone, strict=True))
        )


def _alone(kind: Any) -> tuple[bool, ...]:
    """Which fields are one number."""
    types = typing.get_type_hints(kind)
    return tuple(types[name] is int for name in kind._fields)


def _of(kind: Any, examples: Iterable[Any]) -> Examples[Any]:
    collected = Collected(kind, None)
    for each in examples:
        collected.append(each)
    return collected.whole()


class Collected(Generic[Each]):
    """Examples of one kind while they are made; without a folder all are in memory."""

    def __init__(self, kind: type[Each], folder: str | Path | None):
        names = kind._fields  # type: ignore[attr-defined]
        self._kind, self._alone = kind, _alone(kind)
        self._fields = [
            _Numbers(None if folder is None else Path(folder) / f"{name}.int32") for name in names
        ]
        self._ends = array.array("q", [0] * len(names))

    def __len__(self) -> int:
        return len(self._ends) // len(self._fields) - 1

    def append(self, example: Each) -> None:
        for numbers, value, alone in zip(self._fields, example, self._alone, strict=True):
            self._ends.append(numbers.extend([value] if alone else value))

    def whole(self) -> Examples[Each]:
        ends = np.frombuffer(self._ends, np.int64).reshape(-1, len(self._fields))
        return Examples(self._kind, [numbers.whole() for numbers in self._fields], ends)


class _Numbers:
    """Numbers of 32 bits, one after the other; those that are too many go to the file."""

    def __init__(self, path: Path | None):
        self._path, self._written = path, 0
        self._held = array.array("i")

    def extend(self, numbers: Sequence[int]) -> int:
        """How many there are now."""
        self._held.extend(numbers)
        count = self._written + len(self._held)
        if self._path and len(self._held) >= IN_MEMORY:
            self._write(self._path)
        return count

    def _write(self, path: Path) -> None:
        if not self._written:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # an earlier one may still be read
        with path.open("ab") as file:
            self._held.tofile(file)
        self._written += len(self._held)
        del self._held[:]

    def whole(self) -> np.ndarray:
        if not (self._path and self._written):
            return np.frombuffer(self._held, np.int32)
        self._write(self._path)
        return np.memmap(self._path, np.int32, "r")
