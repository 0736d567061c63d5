"""The records of a file, one after the other: JSON lines, a JSON array, CSV or Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO, NamedTuple

from jlora import _words
from jlora._requires import requires
from jlora.data._compressed import UNPACKED, as_file, chunks
from jlora.data._json_array import array

LONGEST = 1 << 26  # bytes of one record: no more of a file without line ends is held
_HEAD = 1 << 16
_SAVE_AS = "save it as UTF-8, in Excel as 'CSV UTF-8'"
_INSTALL = '"jlora[data]"'


class Record(NamedTuple):
    """One row as it is read."""

    place: str  # "line 3"
    value: Any  # or the ValueError of one that can't be read
    start: int = -1  # in bytes, where the record is a line of the file; -1 elsewhere
    size: int = 0


def records(name: str, file: BinaryIO, endings: tuple[str, ...]) -> Iterator[Record]:
    """The records of a file, by the endings of its name: ``(".jsonl", ".gz")``.

    Raises:
        ValueError: when it is empty, damaged or no text.
    """
    packed = bool(endings) and endings[-1] in UNPACKED
    if packed:
        file = UNPACKED[endings[-1]](name, file)
        endings = endings[:-1]
    for record in FORMATS.get(endings[-1] if endings else "", _json)(name, file):
        yield record._replace(start=-1) if packed else record


def _json(name: str, file: BinaryIO) -> Iterator[Record]:
    """A JSON array, one object, or an object a line."""
    head = file.read(_HEAD)
    begins = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if begins[:1] == b"[":
        values = array(itertools.chain([head], chunks(file)), LONGEST)
        yield from (Record(place, value) for place, value in values)
        return
    if isinstance(loaded(begins.partition(b"\n")[0]), ValueError):  # an object over many lines?
        head += file.read(LONGEST)
        if not isinstance(value := loaded(head), ValueError):
            yield Record("entry 1", value)
            return
    yield from _lines(name, as_file(itertools.chain([head], chunks(file))))


def _lines(name: str, file: BinaryIO) -> Iterator[Record]:
    start, empty = 0, True
    for number in itertools.count(1):
        line = file.readline(LONGEST + 1)
        if not line:
            break
        text = _text_of(name, line, start, number)
        if text.strip():
            empty = False
            yield Record(f"line {number}", loaded(text), start, len(line))
        start += len(line)
    if empty:
        raise ValueError(f"{name} is empty")


def _text_of(name: str, line: bytes, start: int, number: int) -> str:
    """The text of a line, without the mark that some editors put before a file.

    Raises:
        ValueError: when it is none.
    """
    _require_end(name, line, number)
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is no UTF-8 text (byte {start + error.start}): {_SAVE_AS}"
        ) from None
    if "\0" in text:
        raise ValueError(f"{name} is no text: it holds zero bytes")
    return text if start else text.removeprefix("\ufeff")


def _require_end(name: str, line: bytes | str, number: int) -> None:
    if len(line) > LONGEST:
        raise ValueError(
            f"{name}: line {number} is longer than {_words.size(LONGEST)}: expected a row a line"
        )


def loaded(text: str | bytes) -> Any:
    """The value, or the error that says why there is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return ValueError("not JSON: nested too deeply")
    except ValueError as error:  # a number of thousands of digits, or bytes that are no text
        return ValueError(f"not JSON: {error}")


def _table(*delimiters: str) -> Callable[[str, BinaryIO], Iterator[Record]]:
    """A reader of tables whose first line has the names of their columns.

    Args:
        delimiters: what may stand between two fields, the usual one first.
    """

    def read(name: str, file: BinaryIO) -> Iterator[Record]:
        text = _lines_of_table(name, file)
        first = next(text, "")
        delimiter = next((each for each in delimiters if each in first), delimiters[0])
        lines = csv.reader(itertools.chain([first] if first else [], text), delimiter=delimiter)
        previous = csv.field_size_limit(LONGEST)  # no smaller one is meant
        try:
            names = next(lines, None)
            if names is None:
                raise ValueError(f"{name} is empty")
            if twice := [each for each, count in Counter(names).items() if each and count > 1]:
                raise ValueError(f"{name}: two columns are called {twice[0]!r}: rename one of them")
            for values in lines:
                if not any(values):  # blank, or the rows of a sheet below its last one
                    continue
                if len(values) != len(names):
                    problem = f"{len(values)} fields under {len(names)} names"
                    yield Record(f"line {lines.line_num}", ValueError(problem))
                else:
                    pairs = zip(names, values, strict=True)
                    value = {key: value for key, value in pairs if value}
                    yield Record(f"line {lines.line_num}", value)
        except csv.Error as error:
            raise ValueError(f"{name}: line {lines.line_num}: no CSV: {error}") from None
        finally:
            csv.field_size_limit(previous)
            text.close()  # before its file is

    return read


def _lines_of_table(name: str, file: BinaryIO) -> Generator[str]:
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    number = 0
    try:
        while line := text.readline(LONGEST + 1):
            number += 1
            _require_end(name, line, number)
            if "\0" in line:
                raise ValueError(f"{name} is no text: it holds zero bytes")
            yield line
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(errors="replace")[-20:]
        raise ValueError(f"{name} is no UTF-8 text (after {before!r}): {_SAVE_AS}") from None
    finally:
        text.detach()  # whoever opened the file closes it


def _parquet(name: str, file: BinaryIO) -> Iterator[Record]:
    arrow = requires("pyarrow", _INSTALL)
    parquet = requires("pyarrow.parquet", _INSTALL)
    if not file.seekable():  # its table of contents stands at its end
        whole = tempfile.TemporaryFile()  # noqa: SIM115  # gone with the last reference to it
        shutil.copyfileobj(file, whole)
        file = whole  # type: ignore[assignment]
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
            for value in batch.to_pylist():
                number += 1
                yield Record(f"row {number}", without_nulls(value))
    except (arrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} is no whole Parquet file ({reason}): get it again") from None


def without_nulls(value: Any) -> Any:
    """The value without keys that are null: tables give every object the keys of all others."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


FORMATS = {
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".csv": _table(",", ";", "\t"),  # where a comma stands in numbers, Excel writes ;
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}
ENDINGS = (*FORMATS, *(f"{ending}{packed}" for ending in FORMATS for packed in UNPACKED))
