"""Rows that stay on disk: where each begins is known, and it is read when it is asked for."""

from __future__ import annotations

import array
import contextlib
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jlora.data._checked import CONVERSATIONS, Form, checked
from jlora.data._formats import Record, loaded, records
from jlora.data._messages import Messages, Notes, key_of
from jlora.data._sources import Source, version_of
from jlora.data._view import Row, View


class _File(NamedTuple):
    """A file with a row a line."""

    path: Path
    version: tuple[int, int]


class Rows(View[Row]):
    """Rows on disk, from `open_rows` or `open_labelled`: a row is read when it is asked for.

    It has ``len`` and takes an index, as data loaders ask (Grain's ``RandomAccessDataSource``),
    and goes to other processes as it is. In memory are 24 bytes a row.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import jlora
        >>> line = '{"prompt": "2 + 2", "completion": "4"}'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "rows.jsonl")
        ...     _ = path.write_text(line + chr(10) + line)
        ...     rows = jlora.data.open_rows(path, folder=folder)
        ...     len(rows), rows[1]
        (2, [{'role': 'user', 'content': '2 + 2'}, {'role': 'assistant', 'content': '4'}])
    """

    def __init__(
        self,
        files: Sequence[_File],
        of_file: np.ndarray,  # (rows,) int32
        starts: np.ndarray,  # (rows,) int64, in bytes
        sizes: np.ndarray,  # (rows,) int32
        keys: np.ndarray,  # (rows,) uint64, hashes of what a row asks for
        columns: Mapping[str, str],
        form: Form[Row],
    ):
        self._files = tuple(files)
        self._of_file, self._starts, self._sizes = of_file, starts, sizes
        self.keys, self._columns, self._form = keys, dict(columns), form

    def __len__(self) -> int:
        return len(self._starts)

    def _row(self, at: int) -> Row:
        its = self._files[self._of_file[at]]
        with its.path.open("rb") as file:
            return self._read(file, its, at)

    def __iter__(self) -> Iterator[Row]:
        """All rows, each file opened once while it lasts."""
        with contextlib.ExitStack() as stack:
            opened, last = None, None
            for at, number in enumerate(self._of_file):
                its = self._files[number]
                if opened is None or number != last:
                    stack.close()
                    opened, last = stack.enter_context(its.path.open("rb")), number
                yield self._read(opened, its, at)

    def pick(self, which: Sequence[int] | np.ndarray) -> Rows[Row]:
        """These of the rows, in this order.

        Args:
            which: their indices.
        """
        which = np.asarray(which, np.int64)
        of_file, starts, sizes = self._of_file[which], self._starts[which], self._sizes[which]
        keys = self.keys[which]
        return Rows(self._files, of_file, starts, sizes, keys, self._columns, self._form)

    def _read(self, file: BinaryIO, its: _File, at: int) -> Row:
        found = os.fstat(file.fileno())
        if (found.st_size, found.st_mtime_ns) != its.version:
            raise ValueError(
                f"{its.path} was written again since its rows were counted: begin anew with what "
                "it holds now"
            )
        file.seek(self._starts[at])
        value = loaded(file.read(self._sizes[at]).decode("utf-8-sig"))
        return self._form.read(value, self._columns, Notes())


def open_rows(
    source: str | Path,
    *,
    folder: str | Path,
    again: bool = False,
    columns: Mapping[str, str] | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> Rows[Messages]:
    """The conversations that `read_rows` gives, left on disk: they may be more than memory holds.

    Every row is read and checked once before anything is returned. JSON lines are then read where
    they are. Everything else (arrays, CSV, Parquet, compressed files, standard input, data sets of
    the hub) is written into the folder once, as JSON lines. What was written of a file that is
    still the same is found there the next time.

    Args:
        source: as in `read_rows`.
        folder: for what has to be written; it is made when something has to.
        again: what was written of standard input or of a data set is read, not they themselves.
        columns: as in `read_rows`.
        say: as in `read_rows`.

    Raises:
        ValueError: as in `read_rows`.
        OSError: when the folder can't be written.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import jlora
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "rows.csv")
        ...     _ = path.write_text("prompt,completion" + chr(10) + "2 + 2,4")
        ...     rows = jlora.data.open_rows(path, folder=pathlib.Path(folder, "kept"))
        ...     jlora.data.text_of(rows[0][-1])
        '4'
    """
    return opened(source, CONVERSATIONS, folder=Path(folder), again=again, columns=columns, say=say)


def opened(
    source: str | Path,
    form: Form[Row],
    *,
    folder: Path,
    again: bool,
    columns: Mapping[str, str] | None,
    say: Callable[[str], object],
) -> Rows[Row]:
    """The rows of this form on disk, as `open_rows` says."""
    columns = dict(columns or {})
    files: list[_File] = []
    of_file, starts, sizes = array.array("i"), array.array("q"), array.array("i")
    keys = array.array("Q")

    def written(its: Source) -> Source:
        path = _place(its, folder)
        if not path.is_file() or (its.path is None and not again):
            return its
        return its._replace(path=path, records=_lines(its.name, path))

    with contextlib.ExitStack() as copies:
        found = checked(source, columns, say, form, among=written)
        of_source = itertools.groupby(found, key=lambda each: each[0])
        for number, (its, rows) in enumerate(of_source):
            version, copy = its.path and version_of(its.path), None
            for _, record, row in rows:
                start, size = record.start, record.size
                if version is None or start < 0:
                    copy = copy or copies.enter_context(_Copy(_place(its, folder)))
                    start, size = copy.write(record.value)
                of_file.append(number)
                starts.append(start)
                sizes.append(size)
                keys.append(_hashed(key_of(row)))
            if copy:
                files.append(copy.finish())
            elif its.path and version:
                files.append(_File(its.path.absolute(), version))
    return Rows(
        files,
        np.frombuffer(of_file, np.int32),
        np.frombuffer(starts, np.int64),
        np.frombuffer(sizes, np.int32),
        np.frombuffer(keys, np.uint64),
        columns,
        form,
    )


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _place(its: Source, folder: Path) -> Path:
    return folder / f"{its.key}.jsonl"


def _lines(name: str, path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        yield from records(name, file, (".jsonl",))


class _Copy:
    """A file of JSON lines that is there once it is whole."""

    def __init__(self, path: Path):
        self._path, self._aside = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._at = 0
        self._made = [folder for folder in path.parents if not folder.exists()]

    def __enter__(self) -> _Copy:
        with self._named():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._aside.open("wb")
        return self

    def write(self, value: Any) -> tuple[int, int]:
        """Where its line begins, and its length, in bytes."""
        # A table's dates and numbers of other kinds: only keys that are left aside may have them.
        line = json.dumps(value, default=str).encode() + b"\n"
        start = self._at
        with self._named():
            self._at += self._file.write(line)
        return start, len(line)

    def finish(self) -> _File:
        with self._named():
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._aside, self._path)
        return _File(self._path.absolute(), version_of(self._path))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f"{self._path} could not be written: {error.strerror}") from None

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk takes nothing at the end either
            self._file.close()
        if self._aside.exists():  # it was not finished
            self._aside.unlink()
            with contextlib.suppress(OSError):
                for folder in self._made:
                    folder.rmdir()
