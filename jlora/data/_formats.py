"""The records in a file's bytes: JSON lines, a JSON array, CSV or Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from jlora._requires import requires

# Where a record stands ("line 3"), and what it is: a value, or the error of one that can't be read.
Record = tuple[str, Any]

_INSTALL = '"jlora[data]"'


def records(name: str, content: bytes, endings: tuple[str, ...]) -> Iterator[Record]:
    """The records of a file, by the endings of its name: ``(".jsonl", ".gz")``.

    Raises:
        ValueError: when it is empty, damaged or no text.
    """
    if endings and endings[-1] in _PACKED:
        content = _PACKED[endings[-1]](name, content)
        endings = endings[:-1]
    yield from FORMATS.get(endings[-1] if endings else "", _json)(name, content)


def decoded(name: str, content: bytes) -> str:
    """The text in UTF-8, without the mark that some editors put before it.

    Raises:
        ValueError: when it is none, or empty.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise ValueError(f"{name} is no text: it holds zero bytes")
    if not text.strip():
        raise ValueError(f"{name} is empty")
    return text


def _json(name: str, content: bytes) -> Iterator[Record]:
    """A JSON array, one object, or an object a line."""
    text = decoded(name, content)
    lines = text.split("\n")
    whole = text.lstrip()[:1] == "[" or (len(lines) > 1 and not _is_json(lines[0]))
    if whole and (value := _loaded(text)) is not None and not isinstance(value, ValueError):
        values = value if isinstance(value, list) else [value]
        yield from ((f"entry {number}", value) for number, value in enumerate(values, start=1))
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"line {number}", _loaded(line)


def _is_json(line: str) -> bool:
    return not line.strip() or not isinstance(_loaded(line), ValueError)


def _loaded(text: str) -> Any:
    """The value, or the error that says why there is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return ValueError("not JSON: nested too deeply")
    except ValueError as error:  # a number of thousands of digits
        return ValueError(f"not JSON: {error}")


def _table(delimiter: str) -> Callable[[str, bytes], Iterator[Record]]:
    """A reader of tables whose first line has the names of their columns."""

    def read(name: str, content: bytes) -> Iterator[Record]:
        lines = csv.reader(io.StringIO(decoded(name, content), newline=""), delimiter=delimiter)
        previous = csv.field_size_limit(len(content) + 1)  # no smaller one is meant
        try:
            names = next(lines)
            if twice := [name for name, count in Counter(names).items() if name and count > 1]:
                raise ValueError(f"{name}: two columns are called {twice[0]!r}: rename one of them")
            for values in lines:
                if values and len(values) != len(names):
                    problem = f"{len(values)} fields under {len(names)} names"
                    yield f"line {lines.line_num}", ValueError(problem)
                elif values:
                    pairs = zip(names, values, strict=True)
                    yield f"line {lines.line_num}", {key: value for key, value in pairs if value}
        except csv.Error as error:
            raise ValueError(f"{name}: line {lines.line_num}: no CSV: {error}") from None
        finally:
            csv.field_size_limit(previous)

    return read


def _parquet(name: str, content: bytes) -> Iterator[Record]:
    arrow = requires("pyarrow", _INSTALL)
    parquet = requires("pyarrow.parquet", _INSTALL)
    try:
        values = parquet.read_table(io.BytesIO(content)).to_pylist()
    except (arrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} is no whole Parquet file ({reason}): get it again") from None
    for number, value in enumerate(values, start=1):
        yield f"row {number}", without_nulls(value)


def without_nulls(value: Any) -> Any:
    """The value without keys that are null: tables give every object the keys of all others."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def _gunzipped(name: str, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is no whole gzip file ({error}): get it again") from None


def _unzstandard(name: str, content: bytes) -> bytes:
    zstandard = requires("zstandard", _INSTALL)
    found = b""
    try:
        while content:  # frames, one after the other
            frame = zstandard.ZstdDecompressor().decompressobj()
            found += frame.decompress(content)
            if not frame.eof:
                raise ValueError(f"{name} is no whole zstd file (its end is missing): get it again")
            content = frame.unused_data
    except zstandard.ZstdError as error:
        raise ValueError(f"{name} is no whole zstd file ({error}): get it again") from None
    return found


_PACKED = {".gz": _gunzipped, ".zst": _unzstandard}
FORMATS = {
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}
ENDINGS = (*FORMATS, *(f"{ending}{packed}" for ending in FORMATS for packed in _PACKED))
