"""The rows of what was read in one form, or one error that counts what can't be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from jlora import _words
from jlora.data._formats import Record
from jlora.data._messages import Messages, Notes
from jlora.data._shapes import KEYS, conversation_of
from jlora.data._sources import Source, sources

_EXPECTED = (
    "Expected rows (JSON lines, CSV or Parquet) such as "
    '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}, '
    '{"prompt": ..., "completion": ...} or {"instruction": ..., "input": ..., "output": ...}; or '
    "what the guide on data names. Other names of keys or columns go by columns: "
    "prompt=question,completion=answer"
)
Row = TypeVar("Row")
_SHOWN = 5  # bad rows that an error spells out


class Form(NamedTuple, Generic[Row]):
    """What a row may be, and how it is read."""

    # What a row holds, for its value, the columns and what is left aside.
    read: Callable[[Any, Mapping[str, str], Notes], Row]
    keys: Sequence[str]  # our names
    expected: str  # what an error says of rows as they should be


CONVERSATIONS: Form[Messages] = Form(conversation_of, KEYS, _EXPECTED)


def checked(
    source: str | Path,
    columns: Mapping[str, str],
    say: Callable[[str], object],
    form: Form[Row],
    *,
    among: Callable[[Source], Source] = lambda its: its,
) -> Iterator[tuple[Source, Record, Row]]:
    """Each row of the source as it was read, and what it holds.

    Args:
        source: as in `jlora.data.read_rows`.
        columns: names of keys, ours to the rows' own.
        say: called with a line about what was left aside.
        form: of the rows.
        among: may give another source for one: what was read before, say.

    Raises:
        ValueError: as in `jlora.data.read_rows`; of rows that can't be used once all were read.
    """
    keys, expected = form.keys, form.expected
    if unknown := sorted(columns.keys() - set(keys)):
        raise ValueError(
            f"columns: {unknown[0]!r} is none of {', '.join(keys)}. The name here comes first, "
            "that of the rows second: prompt=question"
        )
    count = 0
    given = sources(source)  # of what is not there, no error speaks of how rows look
    try:
        found = [among(its) for its in given]
        for its in found:
            for record, row in _usable(its.name, its.records, columns, say, form):
                count += 1
                yield its, record, row
    except ValueError as error:
        told = str(error)
        raise ValueError(told if expected in told else f"{told}. {expected}") from None
    if not count:
        raise ValueError(f"{source} is empty. {expected}")
    if len(found) > 1:
        say(f"{count} rows from {len(found)} files: {_words.named(its.name for its in found)}")


def _usable(
    name: str,
    records: Iterable[Record],
    columns: Mapping[str, str],
    say: Callable[[str], object],
    form: Form[Row],
) -> Iterator[tuple[Record, Row]]:
    places: dict[str, list[str]] = {}  # the first few of each of the first few reasons
    times: Counter[str] = Counter()
    bad, count, unit = 0, 0, "row"
    notes = Notes()
    for record in records:
        count += 1
        unit = record.place.split()[0]
        try:
            if isinstance(record.value, ValueError):
                raise record.value
            row = form.read(record.value, columns, notes)
        except ValueError as error:
            bad += 1
            reason = _words.one_line(str(error), 300)
            if reason in places or len(places) < _SHOWN:
                its, times[reason] = places.setdefault(reason, []), times[reason] + 1
                its += [record.place] if len(its) < _SHOWN else []
        else:
            if not bad:  # what follows is counted, and of no use
                yield record, row
    if bad:
        units = {"entry": "entries"}.get(unit, f"{unit}s")
        problems = [_problem(at, times[reason], reason) for reason, at in places.items()]
        others = bad - times.total()
        more = [f"and {others} more"] if others else []
        raise ValueError(
            f"{name}: {bad} of {count} {units} can't be used:"
            f"{_words.first_few([*problems, *more], _SHOWN + 1)}\n{form.expected}"
        )
    if notes:
        aside = _words.named((f"{what} ({times} times)" for what, times in notes.items()), 8)
        say(f"{name}: left aside: {aside}")


def _problem(places: Sequence[str], times: int, reason: str) -> str:
    """``line 3, line 5 and 7 more: what is wrong with all of them``."""
    more = f" and {times - len(places)} more" if times > len(places) else ""
    return f"{', '.join(places)}{more}: {reason}"
