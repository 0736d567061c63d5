"""The tokens of all examples in one array, in memory or, when they are many, in a file."""

from __future__ import annotations

import array
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np

from jlora.data._turn import Example

IN_MEMORY = 1 << 24  # numbers of 4 bytes, of tokens and of answers


class Examples(Sequence[Example]):
    """What `encode` makes: a sequence of `Example`, 4 bytes a token.

    Example:
        >>> from jlora.data import Example, Examples
        >>> examples = Examples.of([Example([5, 3, 7, 1], [1, 2]), Example([5, 4], [0])])
        >>> len(examples), examples[-1]
        (2, Example(tokens=[5, 4], answers=[0]))
    """

    def __init__(self, tokens: np.ndarray, answers: np.ndarray, ends: np.ndarray):
        self._tokens, self._answers = tokens, answers  # int32, one example after the other
        self._ends = ends  # (examples + 1, 2) int64: of tokens and answers; those of none first

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Examples:
        """These examples.

        Args:
            examples: in any iterable.
        """
        collected = Collected(None)
        for tokens, answers in examples:
            collected.append(tokens, answers)
        return collected.whole()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: SupportsIndex) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> Examples: ...
    def __getitem__(self, at: SupportsIndex | slice) -> Example | Examples:
        if isinstance(at, slice):
            return Examples.of(self[each] for each in range(len(self))[at])
        at = operator.index(at)
        if not -len(self) <= at < len(self):
            raise IndexError(f"example {at} of {len(self)}")
        at %= len(self)
        (token, answer), (last_token, last_answer) = self._ends[at : at + 2].tolist()
        return Example(
            self._tokens[token:last_token].tolist(), self._answers[answer:last_answer].tolist()
        )


class Collected:
    """Examples while they are made; without a folder all are in memory."""

    def __init__(self, folder: str | Path | None):
        self._tokens, self._answers = (
            _Numbers(None if folder is None else Path(folder) / f"{name}.int32")
            for name in ("tokens", "answers")
        )
        self._ends = array.array("q", [0, 0])

    def __len__(self) -> int:
        return len(self._ends) // 2 - 1

    def append(self, tokens: Sequence[int], answers: Sequence[int]) -> None:
        self._ends.extend((self._tokens.extend(tokens), self._answers.extend(answers)))

    def whole(self) -> Examples:
        ends = np.frombuffer(self._ends, np.int64).reshape(-1, 2)
        return Examples(self._tokens.whole(), self._answers.whole(), ends)


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
