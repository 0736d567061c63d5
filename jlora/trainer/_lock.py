"""One process writes into a folder at a time: the second one is told who the first is."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jlora import _files

_LOCK, _HOLDER = ".lock", ".lock-holder.json"
_FRESH = ".nothing-begun"  # lies where a process began to write into a folder that held nothing


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Holds the folder, which is made if it is not there, until the block ends.

    The lock is the operating system's: it is free once its process has ended, however it ended.
    Gives whether no run was begun in it: it held nothing, or what a start that was killed left.

    Raises:
        ValueError: when another process holds it, which is named; when the folder can't be made.
    """
    from filelock import FileLock, Timeout

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{directory} can't be made: {error.strerror}") from None
    lock = FileLock(directory / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        holder = _holder(directory)
        told = "process {process} on {host} since {since}".format_map(holder) if holder else ""
        raise ValueError(
            f"{directory} is being written by {told or 'another process'}: expected one process at "
            "a time. Wait for it, stop it, or choose another folder"
        ) from None
    except OSError as error:
        raise ValueError(f"{directory} can't be written: {error.strerror}") from None
    try:
        _remove_unfinished(directory)
        held = {"process": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            _files.write_json(directory / _HOLDER, held)
            if not _holds_anything(directory):
                (directory / _FRESH).touch()
        yield (directory / _FRESH).exists()
    finally:
        (directory / _HOLDER).unlink(missing_ok=True)
        lock.release()


def begun(directory: Path) -> None:
    """What is in the folder from now on is a run's."""
    (directory / _FRESH).unlink(missing_ok=True)


def leave(directory: Path, *, everything: bool) -> None:
    """Removes the lock's files, of a folder in which nothing was begun, or all that is in it."""
    ours = {_LOCK, _HOLDER} if _holds_anything(directory) else {_LOCK, _HOLDER, _FRESH}
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            if everything:
                shutil.rmtree(path, ignore_errors=True)
        elif everything or path.name in ours:
            path.unlink(missing_ok=True)


def _holds_anything(directory: Path) -> bool:
    return any(not path.name.startswith(".") for path in directory.iterdir())


def _holder(directory: Path) -> dict[str, Any] | None:
    """Who holds the folder, if that is known."""
    try:
        held = _files.read_json_object(directory / _HOLDER)
    except (OSError, ValueError):
        return None
    return held if {"process", "host", "since"} <= held.keys() else None


def _remove_unfinished(directory: Path) -> None:
    """What processes that were killed left of files that they had not finished."""
    for path in (*directory.glob(".*"), *directory.glob("*/.*")):
        ended = re.fullmatch(r"\..+\.(?:jsonl?|png)\.([0-9]+)", path.name)
        if ended and path.is_file() and not _files.runs(int(ended[1])):
            path.unlink(missing_ok=True)
