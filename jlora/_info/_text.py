"""Facts in plain text: labels beside values, and tables, both aligned."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from jlora._words import one_line

_WIDTH = 100


def pairs(values: Mapping[str, Any]) -> list[str]:
    """A line for each value that is there, its label before it; a long one goes on below."""
    there = {label: str(value) for label, value in values.items() if value not in (None, "")}
    width = max(map(len, there), default=0) + 2
    lines = []
    for label, value in there.items():
        lines += textwrap.wrap(
            value,
            _WIDTH,
            initial_indent=label.ljust(width),
            subsequent_indent=" " * width,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The rows under their header; a column of numbers stands to the right."""
    cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [all(isinstance(c, int) for c in column) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        each = zip(row, widths, right or [False] * len(row), strict=True)
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in each).rstrip()

    return [line(header), *map(line, cells)]


def span(values: Sequence[Any]) -> str:
    """One value, or the lowest and the highest."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def listed(values: Mapping[str, Any]) -> str:
    """``name value, name value``, each to stay on one line where it can."""
    return ", ".join(f"{name} {one_line(str(value), 60)}" for name, value in values.items())
