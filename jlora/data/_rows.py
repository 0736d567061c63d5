"""A person's rows as conversations, or one error that names every row that can't be used."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jlora import _words
from jlora.data._messages import Messages, Notes, is_plain_text
from jlora.data._shapes import KEYS, conversation_of
from jlora.data._sources import sources

_EXPECTED = (
    "Expected one JSON object a line, UTF-8: "
    '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}, '
    '{"prompt": ..., "completion": ...} or {"instruction": ..., "input": ..., "output": ...}; or '
    "what the guide on data names. Other names of keys go by columns: prompt=question"
)
_SHOWN = 5  # bad rows that an error spells out


def read_rows(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> list[Messages]:
    """The conversations of a file, a folder of files, standard input (``-``) or a hub data set.

    A row holds ``messages``, ``conversations``, ``prompt`` and ``completion``, ``instruction`` and
    ``output``, ``chosen`` and ``rejected``, or ``text``.

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
    columns = dict(columns or {})
    if unknown := sorted(columns.keys() - set(KEYS)):
        raise ValueError(
            f"columns: {unknown[0]!r} is none of {', '.join(KEYS)}. The name here comes first, "
            "that of the rows second: prompt=question"
        )
    try:
        found = sources(source)
        rows = [row for its in found for row in _rows(its.name, its.records, columns, say)]
    except ValueError as error:
        told = str(error)
        raise ValueError(told if _EXPECTED in told else f"{told}. {_EXPECTED}") from None
    if not rows:
        raise ValueError(f"{source} is empty. {_EXPECTED}")
    if len(found) > 1:
        say(f"{len(rows)} rows from {len(found)} files: {_words.named(s.name for s in found)}")
    return rows


def _rows(
    name: str, records: Any, columns: Mapping[str, str], say: Callable[[str], object]
) -> list[Messages]:
    rows: list[Messages] = []
    problems: list[str] = []
    notes = Notes()
    unit = "row"
    for place, value in records:
        unit = place.split()[0]
        try:
            if isinstance(value, ValueError):
                raise value
            rows.append(conversation_of(value, columns, notes))
        except ValueError as error:
            problems.append(f"{place}: {_words.one_line(str(error), 300)}")
    if problems:
        units = {"entry": "entries"}.get(unit, f"{unit}s")
        raise ValueError(
            f"{name}: {len(problems)} of {len(rows) + len(problems)} {units} can't be used:"
            f"{_words.first_few(problems, _SHOWN)}\n{_EXPECTED}"
        )
    if notes:
        aside = _words.named((f"{what} ({count} times)" for what, count in notes.items()), 8)
        say(f"{name}: left aside: {aside}")
    return rows


def hold_out(
    rows: Sequence[Messages], count: int, *, seed: int
) -> tuple[list[Messages], list[Messages]]:
    """The rows as (train, held out): ``count`` random ones held out, none of them also in train.

    Args:
        rows: conversations.
        count: how many to hold out.
        seed: another seed holds out others.

    Raises:
        ValueError: when nothing would be left to train on.

    Example:
        >>> import jlora
        >>> answer = {"role": "assistant", "content": "yes"}
        >>> rows = [[{"role": "user", "content": f"Is {n} a number?"}, answer] for n in range(10)]
        >>> train, held_out = jlora.data.hold_out(rows, 2, seed=0)
        >>> len(train), len(held_out)
        (8, 2)
    """
    rng = random.Random(f"{seed}/hold out")
    chosen = set(sorted(range(len(rows)), key=lambda _: rng.random())[:count])
    held_out = [row for index, row in enumerate(rows) if index in chosen]
    asked = {_key(row) for row in held_out}
    train = [row for row in rows if _key(row) not in asked]
    if not train:
        fewer = "" if count == 1 else ", or hold out fewer"
        raise ValueError(
            f"{len(rows)} rows, {count} of them held out for evaluation, leave none to train on: "
            f"give more distinct rows{fewer}"
        )
    return train, held_out


def _key(row: Messages) -> str:
    """What two rows share that ask for the same."""
    return json.dumps(row if is_plain_text(row) else row[:-1])
