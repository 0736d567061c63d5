"""The kinds of faults: each disturbs a run, and says whether it was told as it should be."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.bad_input import _damage
from benchmarks.faults import _disturb, _process


class Undisturbed(NamedTuple):
    """A run that nothing disturbed."""

    flags: list[str]
    folder: Path
    events: int  # how often it changed a file
    seconds: float


Fault = Callable[[Undisturbed, Path, random.Random], str | None]  # what was wrong, if anything


def killed_at_an_event(whole: Undisturbed, folder: Path, rng: random.Random) -> str | None:
    """SIGKILL before a file is opened, renamed, removed, or waited for."""
    disturb = _disturb.killed_at(rng.randint(1, whole.events))
    return _is(
        -signal.SIGKILL,
        _process.ended(_process.started(next_flags(whole, folder), folder, disturb)),
    )


def killed_at_a_moment(whole: Undisturbed, folder: Path, rng: random.Random) -> str | None:
    """SIGKILL at any time."""
    child = _process.started(next_flags(whole, folder), folder)
    return _is(-signal.SIGKILL, _process.ended(child, rng.uniform(0, whole.seconds)))


def disk_full(whole: Undisturbed, folder: Path, rng: random.Random) -> str | None:
    """No room from one event on, or for files that are longer than so much."""
    disturb = _disturb.full_from(rng.randint(1, whole.events))
    if rng.random() < 0.5:
        disturb = _disturb.files_below(rng.choice((0, 10, 100, 300, 1000, 3000)))
    status = _process.ended(_process.started(next_flags(whole, folder), folder, disturb))
    return None if status in (0, 1, 2) else f"status {status}"


def damaged_state(whole: Undisturbed, folder: Path, rng: random.Random) -> str | None:
    """A file of the newest state is changed, cut or gone."""
    shutil.copytree(whole.folder, folder)
    states = sorted((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    file = rng.choice(sorted(path for path in states[-1].rglob("*") if path.is_file()))
    content = file.read_bytes()
    if rng.random() < 0.3 or not content:
        file.unlink()
    else:
        file.write_bytes(_damage.of_bytes(content, rng)[0])
    return None


def two_processes(whole: Undisturbed, folder: Path, rng: random.Random) -> str | None:
    """A second process, while the first holds the folder, is told so and leaves it alone."""
    first = _process.started(whole.flags, folder)
    while not (folder / ".lock-holder.json").exists():
        time.sleep(0.01)
    time.sleep(rng.random())  # the first has far more to do
    flags = rng.choice((whole.flags, ["--resume"], [*whole.flags, "--overwrite"]))
    second = _process.ended(_process.started(flags, folder))
    status = _process.ended(first)
    return _is(2, second) or _is(0, status)


def next_flags(whole: Undisturbed, folder: Path) -> list[str]:
    """Those that go on with the run, or begin it where none was begun."""
    return ["--resume"] if (folder / "run.json").exists() else whole.flags


def _is(wanted: int, status: int) -> str | None:
    # a kill that comes too late finds a run that has ended well
    return None if status in (wanted, 0 if wanted < 0 else wanted) else f"status {status}"


KINDS: dict[str, Fault] = {
    "killed at a file event": killed_at_an_event,
    "killed at any moment": killed_at_a_moment,
    "disk full": disk_full,
    "damaged state": damaged_state,
    "two processes": two_processes,
}
