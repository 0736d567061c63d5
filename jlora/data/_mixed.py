"""Rows of several sources as one sequence, each source with a share of its own."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from jlora.data._plan import at_random
from jlora.data._view import View


class Mixed(View[Any]):
    """The rows that `mixed` chooses: which they are is known, and each is read when asked for.

    Example:
        >>> import jlora
        >>> rows = jlora.data.mixed([(["a", "b"], 1), (["x"], 1)], seed=0)
        >>> len(rows), rows.pick([0])[0] == rows[0]
        (3, True)
    """

    def __init__(self, sources: Sequence[Sequence[Any]], of: np.ndarray, at: np.ndarray):
        self._sources = tuple(sources)
        self._of, self._at = of, at  # (rows,) int16 and int64: the source, and which row of it

    def __len__(self) -> int:
        return len(self._of)

    def _row(self, at: int) -> Any:
        return self._sources[self._of[at]][int(self._at[at])]

    def pick(self, which: Sequence[int] | np.ndarray) -> Mixed:
        """These of the rows, in this order.

        Args:
            which: their indices.
        """
        which = np.asarray(which, np.int64)
        return Mixed(self._sources, self._of[which], self._at[which])


def mixed(
    sources: Sequence[tuple[Sequence[Any], float]], *, seed: int, length: int | None = None
) -> Mixed:
    """The rows of several sources in turn, of each as many as its weight says.

    However far one reads, each source has had its share of the rows, but for less than one row.
    A source gives all its rows, in an order of its own, before it gives one again. What stands at
    an index depends on the seed and on the sources' lengths and weights alone.

    Args:
        sources: pairs of rows, in a list or on disk, and a weight above 0; the weights need not sum
            to 1.
        seed: of the sources' orders.
        length: how many rows; as many as all sources have unless given.

    Raises:
        ValueError: when there is no source, one is empty, a weight is no number above 0, or
            ``length`` is below 1.

    Source: the order of the sources is Tijdeman's ("The chairman assignment problem", Discrete
    Mathematics 32, 1980).

    Example:
        >>> import jlora
        >>> rows = jlora.data.mixed([(["a", "b"], 2), (["x", "y", "z"], 1)], seed=0, length=6)
        >>> "".join(sorted(rows)).count("a"), sum(row in "xyz" for row in rows)
        (2, 2)
    """
    problems = [
        f"source {number}: {problem}"
        for number, (rows, weight) in enumerate(sources, start=1)
        for problem in _problems(rows, weight)
    ]
    if not sources:
        problems.append("there is no source: expected at least one pair of rows and weight")
    if length is not None and length < 1:
        problems.append(f"length is {length}: expected at least 1")
    if problems:
        raise ValueError("; ".join(problems))
    length = sum(len(rows) for rows, _ in sources) if length is None else length
    total = math.fsum(weight for _, weight in sources)
    of = _turns([weight / total for _, weight in sources], length)
    at = np.empty(length, np.int64)
    for number, (rows, _) in enumerate(sources):
        places = np.flatnonzero(of == number)
        at[places] = _order(len(rows), len(places), f"{seed}/mixed/{number}")
    return Mixed([rows for rows, _ in sources], of, at)


def _problems(rows: Sequence[Any], weight: float) -> list[str]:
    problems = [] if len(rows) else ["has no rows"]
    if not (isinstance(weight, int | float) and 0 < weight < math.inf):
        problems.append(f"the weight is {weight!r}: expected a number above 0")
    return problems


def _turns(shares: Sequence[float], length: int) -> np.ndarray:
    """(length,) int16: whose turn it is. After n rows a source has had n * share, within 1.

    Of those that are behind by enough, the one whose next row is due first.
    """
    of = np.zeros(length, np.int16)
    if len(shares) == 1:
        return of
    slack = 1 / (2 * len(shares) - 2)
    had = [0] * len(shares)
    for n in range(1, length + 1):
        behind = [share * n - count for share, count in zip(shares, had, strict=True)]
        due = [
            ((1 - slack - lag) / share, number)
            for number, (lag, share) in enumerate(zip(behind, shares, strict=True))
            if lag >= slack - 1e-9
        ]
        _, chosen = min(due)
        had[chosen] += 1
        of[n - 1] = chosen
    return of


def _order(rows: int, count: int, seed: str) -> np.ndarray:
    """(count,) int64: rows in random orders, one behind the other, each of all rows."""
    orders = []
    for number in range(-(-count // rows)):
        orders.append(at_random(rows, random.Random(f"{seed}/{number}")))
    return np.concatenate(orders)[:count] if orders else np.empty(0, np.int64)
