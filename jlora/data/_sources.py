"""What a person means by rows: a file, a folder, standard input, a data set on the hub."""

from __future__ import annotations

import hashlib
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jlora import _hub, _words
from jlora._hub import HubId
from jlora._requires import requires
from jlora.data._compressed import as_file, chunks
from jlora.data._formats import ENDINGS, Record, records, without_nulls

_SPLIT = re.compile(r"[\w.-]+")
STANDARD_INPUT, IN_WORDS = "-", "standard input"


class Source(NamedTuple):
    """One place that rows come from."""

    name: str
    key: str  # of a file or data set, another one where its content is another
    path: Path | None  # of a file
    records: Iterator[Record]


def sources(source: str | Path) -> list[Source]:
    """The files, or the one other place, that rows are read from.

    Raises:
        ValueError: when there is nothing to read.
    """
    if str(source) == STANDARD_INPUT:
        return [Source(IN_WORDS, IN_WORDS.replace(" ", "-"), None, _standard_input())]
    path = Path(source).expanduser()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not _has_known_ending(path) and (named := _data_set(str(source))):
            name = str(source)
            return [Source(name, _key(name), None, _on_the_hub(name, *named))]
        raise ValueError(f"{path} can't be read: No such file or directory") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        return [_source(file) for file in _files(path)]
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is no file but a pipe or a device: rows from a pipe go by -")
    return [_source(path)]


def _source(path: Path) -> Source:
    return Source(str(path), _key(path.absolute(), *version_of(path)), path, _file(path))


def version_of(path: Path) -> tuple[int, int]:
    """What is another when a file was written again: its size, and when it was.

    Raises:
        ValueError: when it is not there.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    return found.st_size, found.st_mtime_ns


def _key(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _file(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            yield from records(str(path), file, tuple(path.suffixes))
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None


def _files(directory: Path) -> list[Path]:
    """The files of rows in a folder and those below it, in the order of their names."""
    found = [
        path
        for path in sorted(directory.rglob("*"))
        if _has_known_ending(path) and path.is_file()
        if not any(part.startswith(".") for part in path.relative_to(directory).parts)
    ]
    if not found:
        raise ValueError(f"{directory} holds no file of rows ({_words.named(ENDINGS, 99)})")
    return found


def _has_known_ending(path: Path) -> bool:
    return path.name.endswith(ENDINGS)


def _standard_input() -> Iterator[Record]:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("standard input is a terminal: give the rows as in train.py < rows.jsonl")
    yield from records(IN_WORDS, as_file(chunks(sys.stdin.buffer)), ())


def _data_set(source: str) -> tuple[HubId, str] | None:
    """The data set and its split that ``owner/name@revision:split`` names, if it is such a text."""
    name, colon, split = source.partition(":")
    hub_id = _hub.parsed(name)
    if hub_id is None or (colon and not _SPLIT.fullmatch(split)):
        return None
    return hub_id, split or "train"


def _on_the_hub(source: str, hub_id: HubId, split: str) -> Iterator[Record]:
    """The rows of a data set's split."""
    here = f"{source!r} is no file or folder here, and as a data set on the Hugging Face hub"
    try:
        datasets = requires("datasets", '"jlora[data]"')
    except ValueError as error:
        raise ValueError(f"{here} it can't be fetched: {error}") from None
    try:
        rows = datasets.load_dataset(hub_id.name, split=split, revision=hub_id.revision)
    except Exception as error:  # a dozen types, of several libraries
        raise ValueError(
            f"{here} it could not be fetched: {type(error).__name__}: "
            f"{_words.one_line(str(error), 300)}"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield Record(f"row {number}", without_nulls(row))
