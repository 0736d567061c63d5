"""Numbers, lists and long texts in a person's words, for reports and errors."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence


def size(count: float) -> str:
    """Bytes: ``1.87 MB``."""
    for unit, value in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= value:
            return f"{count / value:.2f} {unit}"
    return f"{count} bytes"


def amount(count: float, of: str) -> str:
    """Three digits of a large number of something: ``54.4 GFLOP``."""
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000:
            return f"{count:.3g} {unit}{of}"
        count /= 1000
    return f"{count:.3g} P{of}"


def first_few(lines: Sequence[str], most: int = 6) -> str:
    """The first of the lines, each on one of its own, and how many more there are."""
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"\n  {line}" for line in (*lines[:most], *more))


def named(names: Iterable[str], most: int = 5) -> str:
    """The first of the names in one line, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(text: str, width: int = 160) -> str:
    """A text in one line of at most so many letters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def unlike(name: str, taken: Iterable[str]) -> str:
    """The name, or "name 2", "name 3" and so on: the first that is not taken."""
    taken = set(taken)
    names = itertools.chain([name], (f"{name} {at}" for at in itertools.count(2)))
    return next(each for each in names if each not in taken)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean loss?)`` where one of the known ones is much like the name, or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
