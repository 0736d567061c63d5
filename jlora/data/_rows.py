"""A person's rows as conversations in memory, and which of them are held out."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from jlora.data._checked import CONVERSATIONS, Row, checked
from jlora.data._messages import Messages, key_of
from jlora.data._on_disk import Rows
from jlora.data._plan import at_random
from jlora.data._view import View


def read_rows(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> list[Messages]:
    """The conversations of a file, a folder of files, standard input (``-``) or a hub data set.

    A row holds ``messages``, ``conversations``, ``prompt`` and ``completion``, ``instruction`` and
    ``output``, ``chosen`` and ``rejected``, or ``text``. All are in memory: `open_rows` leaves them
    on disk.

    Args:
        source: JSON lines, a JSON array, CSV or Parquet, perhaps compressed.
        columns: names of keys, ours to the rows' own: ``{"prompt": "question"}``.
        say: called with a line about what was left aside.

    Raises:
        ValueError: when there is no such source, or nothing in it; or when rows can't be used:
            every one is counted, the first few are named.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import jlora
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "rows.jsonl")
        ...     _ = path.write_text('{"prompt": "2 + 2", "completion": "4"}')
        ...     jlora.data.read_rows(path)
        [[{'role': 'user', 'content': '2 + 2'}, {'role': 'assistant', 'content': '4'}]]
    """
    return [messages for _, _, messages in checked(source, columns or {}, say, CONVERSATIONS)]


@overload
def hold_out(rows: Rows[Row], count: int, *, seed: int) -> tuple[Rows[Row], Rows[Row]]: ...
@overload
def hold_out(rows: Sequence[Row], count: int, *, seed: int) -> tuple[list[Row], list[Row]]: ...
def hold_out(rows: Sequence[Row], count: int, *, seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """The rows as (train, held out): ``count`` random ones held out, none of them also in train.

    Args:
        rows: conversations or texts with labels, in a list or on disk: so are those that are
            returned.
        count: how many to hold out.
        seed: another seed holds out others.

    Raises:
        ValueError: when nothing would be left to train on, or ``count`` is below 1.

    Example:
        >>> import jlora
        >>> answer = {"role": "assistant", "content": "yes"}
        >>> rows = [[{"role": "user", "content": f"Is {n} a number?"}, answer] for n in range(10)]
        >>> train, held_out = jlora.data.hold_out(rows, 2, seed=0)
        >>> len(train), len(held_out)
        (8, 2)
    """
    if count < 1:
        raise ValueError(f"{count} rows to hold out: expected at least 1")
    chosen = np.sort(at_random(len(rows), random.Random(f"{seed}/hold out"))[:count])
    held_out = _picked(rows, chosen)
    train = _picked(rows, np.flatnonzero(~_alike(rows, held_out)))
    if not len(train):
        fewer = "" if count == 1 else ", or hold out fewer"
        raise ValueError(
            f"{len(rows)} rows, {count} of them held out for evaluation, leave none to train on: "
            f"give more distinct rows{fewer}"
        )
    return train, held_out


def _picked(rows: Sequence[Row], which: np.ndarray) -> Sequence[Row]:
    return rows.pick(which) if isinstance(rows, View) else [rows[at] for at in which]


def _alike(rows: Sequence[Any], held_out: Sequence[Any]) -> np.ndarray:
    """(rows,) bool: which ask for the same as one that is held out.

    Rows on disk are read only where their keys' hashes agree.
    """
    asked = set(map(key_of, held_out))
    if not (isinstance(rows, Rows) and isinstance(held_out, Rows)):
        return np.fromiter((key_of(row) in asked for row in rows), bool, len(rows))
    found = np.isin(rows.keys, held_out.keys)
    places = np.flatnonzero(found)
    found[places] = [key_of(row) in asked for row in rows.pick(places)]
    return found
