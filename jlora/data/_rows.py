"""A person's rows as conversations in memory, and which of them are held out."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from jlora.data._checked import checked
from jlora.data._messages import Messages, is_plain_text
from jlora.data._on_disk import Rows


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
    return [messages for _, _, messages in checked(source, columns or {}, say)]


@overload
def hold_out(rows: Rows, count: int, *, seed: int) -> tuple[Rows, Rows]: ...
@overload
def hold_out(
    rows: Sequence[Messages], count: int, *, seed: int
) -> tuple[list[Messages], list[Messages]]: ...
def hold_out(
    rows: Sequence[Messages], count: int, *, seed: int
) -> tuple[Sequence[Messages], Sequence[Messages]]:
    """The rows as (train, held out): ``count`` random ones held out, none of them also in train.

    Args:
        rows: conversations, in a list or on disk: so are those that are returned.
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
    rng = random.Random(f"{seed}/hold out")
    order = np.fromiter((rng.random() for _ in range(len(rows))), np.float64, len(rows))
    chosen = np.sort(np.argsort(order, kind="stable")[:count])
    held_out = _picked(rows, chosen)
    asked = {_key(row) for row in held_out}
    kept = np.fromiter((_key(row) not in asked for row in rows), bool, len(rows))
    train = _picked(rows, np.flatnonzero(kept))
    if not len(train):
        fewer = "" if count == 1 else ", or hold out fewer"
        raise ValueError(
            f"{len(rows)} rows, {count} of them held out for evaluation, leave none to train on: "
            f"give more distinct rows{fewer}"
        )
    return train, held_out


def _picked(rows: Sequence[Messages], which: np.ndarray) -> Sequence[Messages]:
    return rows.pick(which) if isinstance(rows, Rows) else [rows[at] for at in which]


def digest(*parts: Sequence[Messages]) -> str:
    """The sha256 of the rows of all parts: another one where any row is another.

    Args:
        parts: conversations, in lists or on disk.

    Example:
        >>> import jlora
        >>> row = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]
        >>> jlora.data.digest([row], [row])[:8] == jlora.data.digest([row, row], [])[:8]
        False
    """
    found = hashlib.sha256(b"[")
    for number, rows in enumerate(parts):
        found.update(b", [" if number else b"[")
        for at, row in enumerate(rows):
            found.update(f"{', ' if at else ''}{json.dumps(row)}".encode())
        found.update(b"]")
    found.update(b"]")
    return found.hexdigest()


def _key(row: Any) -> str:
    """What two rows share that ask for the same: all but the answer or the label."""
    if isinstance(row, Mapping):
        return json.dumps({name: value for name, value in row.items() if name != "label"})
    if isinstance(row, Mapping):  # a text with a label
        return json.dumps({name: value for name, value in row.items() if name != "label"})
    return json.dumps(row if is_plain_text(row) else row[:-1])
