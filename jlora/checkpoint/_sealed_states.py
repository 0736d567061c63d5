"""A state's seal: the sum of every file in it, so that a damaged one is known before it is read."""

from __future__ import annotations

from pathlib import Path

from jlora import _files
from jlora.checkpoint import _arrays

_SEAL = "seal.json"


def seal(state: Path, run: str | None) -> None:
    """Seals the folder of a state: its files, its step, and the run that it belongs to.

    Raises:
        OSError: when the seal can't be written; the state then counts as not whole.
    """
    _files.write_json(state / _SEAL, _sums(state, run))


def problem(state: Path, run: str | None) -> str | None:
    """What is wrong with the state of a run, in words, or None if it is as it was sealed."""
    path = state / _SEAL
    if not path.exists():
        return "it has no seal, so saving it was interrupted"
    try:
        sealed = _files.read_json(path)
    except ValueError as error:
        return str(error)
    found = _sums(state, run)
    if not isinstance(sealed, dict) or not isinstance(sealed.get("files"), dict):
        return f"{_SEAL} is no seal"
    if sealed.get("step") != found["step"]:
        return f"it is the state of step {sealed.get('step')}"
    if sealed.get("run") != found["run"]:
        return "it is another run's"
    names = sealed["files"].keys() | found["files"].keys()
    changed = [
        name for name in sorted(names) if sealed["files"].get(name) != found["files"].get(name)
    ]
    return f"{changed[0]} is not what was written" if changed else None


def _sums(state: Path, run: str | None) -> dict:
    files = {name: value for name, value in _arrays.seal(state).items() if name != _SEAL}
    return {"step": int(state.name), "run": run, "files": files}
