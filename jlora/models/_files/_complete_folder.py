"""A folder that appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jlora._files import lack_of_room, runs

MARK = "jlora.json"  # in every folder that is written here, and in no other


def claim(out: Path, *, overwrite: bool, sources: tuple[Path, ...]) -> Path:
    """The folder's own path, links followed, once it may be written; nothing is written yet.

    What a process that was killed had moved aside stands there again.

    Args:
        out: the folder to be.
        overwrite: whether it may replace a folder that was written here.
        sources: files and folders that are read, which the new folder must not replace.

    Raises:
        ValueError: when something else stands there.
    """
    out = out.expanduser().resolve()
    for source in sources:
        source = source.resolve()
        if out == source or out in source.parents:
            raise ValueError(f"{out} is what is read, or holds it: choose another folder")
    _put_back(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: expected a folder")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} is not empty: choose another folder, or overwrite it")
        if not (out / MARK).exists():
            names = sorted(entry.name for entry in out.iterdir())
            raise ValueError(
                f"{out} is nothing that jlora wrote, and is not overwritten. It holds "
                + ", ".join(names[:5])
            )
    return out


@contextlib.contextmanager
def complete(out: Path, needed: int) -> Iterator[Path]:
    """A folder beside ``out`` to write in, which takes its place when the block ends without error.

    Until then ``out`` stays as it is. A process that is killed leaves a hidden folder
    ``.<name>.unfinished-<process>``, which the next one removes. Killed in the moment of the
    change, it leaves what stood there as ``.<name>.former-<process>``; the next `claim` puts it
    back.

    Args:
        out: from `claim`.
        needed: the bytes that will be written.

    Raises:
        OSError: when the disk has no room for them, or they can't be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(out)
        if problem := lack_of_room(out, needed):
            raise OSError(0, problem)
        aside = out.with_name(f".{out.name}.unfinished-{os.getpid()}")
        aside.mkdir()
        try:
            yield aside
            _replace(out, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise OSError(f"{out} could not be written: {error.strerror or error}") from error


def _replace(out: Path, aside: Path) -> None:
    if not out.exists():
        aside.rename(out)
        return
    former = out.with_name(f".{out.name}.former-{os.getpid()}")
    out.rename(former)
    try:
        aside.rename(out)
    except OSError:
        former.rename(out)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _put_back(out: Path) -> None:
    """What stood at ``out`` before a process was killed that had moved it aside."""
    if not out.exists() and out.parent.is_dir() and (former := _left_over(out, "former")):
        former[0].rename(out)


def _remove_left_over(out: Path) -> None:
    """What processes that were killed left behind."""
    for path in (*_left_over(out, "unfinished"), *_left_over(out, "former")):
        shutil.rmtree(path, ignore_errors=True)


def _left_over(out: Path, what: str) -> list[Path]:
    found = [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.{what}-")]
    numbers = [path.name.rpartition("-")[2] for path in found]
    return [
        path
        for path, number in zip(found, numbers, strict=True)
        if number.isdigit() and not runs(int(number))
    ]
