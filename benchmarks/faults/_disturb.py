"""What goes wrong in a process: it is killed, or the disk is full, at one of its file events."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Disturb = Callable[[Path], None]  # is called in the process, with the run's folder, before it runs

_NEED_ROOM = ("open", "os.rename", "os.mkdir", "faults.fsync")
_CHANGES = (*_NEED_ROOM, "os.remove", "os.rmdir", "shutil.rmtree")
_WRITES = os.O_WRONLY | os.O_RDWR


def nothing(folder: Path) -> None:
    """The process runs as it is."""


def killed_at(number: int) -> Disturb:
    """SIGKILL before this event of files in the folder, counted from 1."""

    def at(count: int, event: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda folder: at_events(folder, at)


def full_from(number: int) -> Disturb:
    """From this event on, the disk has no room."""

    def at(count: int, event: str) -> None:
        if count >= number and event in _NEED_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda folder: at_events(folder, at)


def files_below(size: int) -> Disturb:
    """No file can be longer than so many bytes: libraries in C++ are told, too."""

    def limit(folder: Path) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    return limit


def at_events(folder: Path, at: Callable[[int, str], object]) -> None:
    """Calls ``at`` with number and name of each event that changes a file there, before it."""
    count, inside = 0, str(folder)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        changes = event in _CHANGES and (event != "open" or (args[2] or 0) & _WRITES)
        if changes and (event == "faults.fsync" or str(args[0]).startswith(inside)):
            count += 1
            at(count, event)

    fsync = os.fsync

    def audited(file: int) -> None:
        sys.audit("faults.fsync")
        fsync(file)

    os.fsync = audited
    sys.addaudithook(hook)  # for good: the process ends with it
