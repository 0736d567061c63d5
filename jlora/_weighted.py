"""A name with a weight, as a flag gives it: ``rows.jsonl=2``, ``my-adapter=0.5``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple


class Weighted(NamedTuple):
    """A file, a folder or a hub id, and how much it counts."""

    name: str
    weight: float


def weighted(text: str) -> Weighted:
    """The name, and its weight behind the last ``=`` where a number stands; 1 without one.

    What is there under the whole text is meant whole.
    """
    name, equals, weight = text.rpartition("=")
    if equals and name and not Path(text).expanduser().exists():
        with contextlib.suppress(ValueError):
            return Weighted(name, float(weight))
    return Weighted(text, 1.0)
