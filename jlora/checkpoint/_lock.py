"""One process writes into a folder at a time: the second one is told who the first is."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from jlora import _files

_LOCK, _HOLDER = ".lock", ".lock-holder.json"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the folder, which is made if it is not there, until the block ends.

    The lock is the operating system's: it is free once its process has ended, however it ended.

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
        raise ValueError(
            f"{directory} is being written by {_holder(directory)}: expected one process at a "
            "time. Wait for it, stop it, or choose another folder"
        ) from None
    except OSError as error:
        raise ValueError(f"{directory} can't be written: {error.strerror}") from None
    try:
        held = {"process": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            _files.write_json(directory / _HOLDER, held)
        yield
    finally:
        (directory / _HOLDER).unlink(missing_ok=True)
        lock.release()


def leave(directory: Path, *, everything: bool) -> None:
    """Removes the lock's files, of a folder in which nothing was begun, or all that is in it."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            if everything:
                shutil.rmtree(path, ignore_errors=True)
        elif everything or path.name in (_LOCK, _HOLDER):
            path.unlink(missing_ok=True)


def _holder(directory: Path) -> str:
    """Who holds the folder, in words."""
    try:
        held = _files.read_json(directory / _HOLDER)
        return f"process {held['process']} on {held['host']} since {held['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
