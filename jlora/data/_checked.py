"""The conversations of what was read, or one error that counts what can't be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from jlora import _words
from jlora.data._formats import Record
from jlora.data._messages import Messages, Notes
from jlora.data._shapes import KEYS, conversation_of
from jlora.data._sources import Source, sources

_EXPECTED = (
    "Expected one JSON object a line, UTF-8: "
    '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}, '
    '{"prompt": ..., "completion": ...} or {"instruction": ..., "input": ..., "output": ...}; or '
    "what the guide on data names. Other names of keys go by columns: prompt=question"
)
_SHOWN = 5  # bad rows that an error spells out


def checked(
    source: str | Path,
    columns: Mapping[str, str],
    say: Callable[[str], object],
    among: Callable[[Source], Source] = lambda its: its,
) -> Iterator[tuple[Source, Record, Messages]]:
    """Each row of the source as it was read, and its conversation.

    Args:
        source: as in `jlora.data.read_rows`.
        columns: names of keys, ours to the rows' own.
        say: called with a line about what was left aside.
        among: may give another source for one: what was read before, say.

    Raises:
        ValueError: as in `jlora.data.read_rows`; of rows that can't be used once all were read.
    """
    if unknown := sorted(columns.keys() - set(KEYS)):
        raise ValueError(
            f"columns: {unknown[0]!r} is none of {', '.join(KEYS)}. The name here comes first, "
            "that of the rows second: prompt=question"
        )
    count = 0
    try:
        found = [among(its) for its in sources(source)]
        for its in found:
            for record, messages in _usable(its.name, its.records, columns, say):
                count += 1
                yield its, record, messages
    except ValueError as error:
        told = str(error)
        raise ValueError(told if _EXPECTED in told else f"{told}. {_EXPECTED}") from None
    if not count:
        raise ValueError(f"{source} is empty. {_EXPECTED}")
    if len(found) > 1:
        say(f"{count} rows from {len(found)} files: {_words.named(its.name for its in found)}")


def _usable(
    name: str, records: Iterable[Record], columns: Mapping[str, str], say: Callable[[str], object]
) -> Iterator[tuple[Record, Messages]]:
    problems: list[str] = []  # the first few
    bad, count, unit = 0, 0, "row"
    notes = Notes()
    for record in records:
        count += 1
        unit = record.place.split()[0]
        try:
            if isinstance(record.value, ValueError):
                raise record.value
            messages = conversation_of(record.value, columns, notes)
        except ValueError as error:
            bad += 1
            if bad <= _SHOWN:
                problems.append(f"{record.place}: {_words.one_line(str(error), 300)}")
        else:
            if not bad:  # what follows is counted, and of no use
                yield record, messages
    if bad:
        units = {"entry": "entries"}.get(unit, f"{unit}s")
        more = [f"and {bad - _SHOWN} more"] if bad > _SHOWN else []
        raise ValueError(
            f"{name}: {bad} of {count} {units} can't be used:"
            f"{_words.first_few([*problems, *more], _SHOWN + 1)}\n{_EXPECTED}"
        )
    if notes:
        aside = _words.named((f"{what} ({times} times)" for what, times in notes.items()), 8)
        say(f"{name}: left aside: {aside}")
