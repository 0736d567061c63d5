"""A state's seal: what it is, notes, and the sum of every file, so that no damaged one is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jlora import _sealed_json
from jlora.checkpoint import _arrays

_SEAL = "seal.json"
_VERSION = 3  # 2 had no notes and no sum of its own


class Seal(NamedTuple):
    """What a state says of itself."""

    step: int
    run: str | None  # what tells a run's states from another's; jlora 0.1 knew none
    notes: dict[str, Any]
    best: bool
    files: dict[str, str]  # their sums


def seal(state: Path, *, step: int, run: str | None, notes: Mapping[str, Any], best: bool) -> None:
    """Seals the folder of a state.

    Raises:
        ValueError: when JSON can't hold the notes.
        OSError: when the seal can't be written; the state then counts as not whole.
    """
    told = Seal(step, run, dict(notes), best, _sums(state))
    _sealed_json.write(state / _SEAL, told._asdict(), version=_VERSION)


def read(state: Path) -> Seal:
    """What the seal says; nothing else is read.

    Raises:
        ValueError: when there is none, or it is damaged, or a newer jlora wrote it.
    """
    if not (state / _SEAL).exists():
        raise ValueError("it has no seal, so saving it was interrupted")
    told = _sealed_json.read(state / _SEAL, newest=_VERSION, sealed_since=3)
    try:
        seal = Seal(
            told["step"], told["run"], told.get("notes", {}), told.get("best", False), told["files"]
        )
    except KeyError as error:
        raise ValueError(f"{_SEAL} says nothing of {error}") from None
    if not (isinstance(seal.step, int) and isinstance(seal.files, dict)):
        raise ValueError(f"{_SEAL} is no seal")
    return seal


def checked(state: Path, step: int, run: str | None) -> Seal:
    """What the seal says of the state of a run, once all of its files are as they were sealed.

    Raises:
        ValueError: when they are not, with what is wrong; a `NewerVersionError` as `read`.
    """
    seal = read(state)
    if seal.step != step:
        raise ValueError(f"it is the state of step {seal.step}")
    if seal.run != run:
        raise ValueError("it is another run's")
    found = _sums(state)
    for name in sorted(seal.files.keys() | found.keys()):
        if seal.files.get(name) != found.get(name):
            raise ValueError(f"{name} is not what was written")
    return seal


def _sums(state: Path) -> dict[str, str]:
    return {name: value for name, value in _arrays.seal(state).items() if name != _SEAL}
