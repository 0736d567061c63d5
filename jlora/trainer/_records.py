"""What a run's folder says in JSON: what the run was begun with, and its own records."""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _files, _sealed_json

_FILE = "run.json"
_VERSION = 3  # of run.json; 1 had no id, and states without seals; 2 had no sum of its own
_ID = "id"  # the key of what tells one run's states from another's
_RECORD_VERSION, _RUN = 1, "run"  # of what `write` writes; the key of the run's id in it
_OWN = (_sealed_json.VERSION, _ID, "format")  # in run.json; "format" was the version's key


class Records:
    """``run.json`` and the records of a run's folder: those of another run are not there.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run."""
        return (self._folder / _FILE).exists()

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was begun with.

        Raises:
            ValueError: when the folder holds no run, a damaged one, or a newer version's.
        """
        return {name: value for name, value in self._begun_with().items() if name not in _OWN}

    @property
    def run(self) -> str | None:
        """The id of the run that was begun; version 0.1 gave none.

        Raises:
            ValueError: as `settings`.
        """
        return self._begun_with().get(_ID)

    @property
    def seals_states(self) -> bool:
        """Whether the version that began the run sealed its states."""
        return not self.begun or self._begun_with()[_sealed_json.VERSION] > 1

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises a ValueError where settings have a name that is the run's own."""
        if taken := [name for name in _OWN if name in settings]:
            raise ValueError(f"settings have {taken[0]!r}: that name is the run's own")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Begins a run with an id of its own.

        Raises:
            ValueError: when JSON can't hold the settings.
            OSError: when it can't be written.
        """
        told = {_ID: uuid.uuid4().hex, **settings}
        _sealed_json.write(self._folder / _FILE, told, version=_VERSION)

    def remove_others(self) -> None:
        """Deletes the records of other runs."""
        its = self.run
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(ValueError):  # nothing of ours
                told = _sealed_json.read(path, newest=_RECORD_VERSION)
                if told.get(_RUN, its) != its:
                    path.unlink()

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Keeps the content as ``<name>.json``, replaced in one step.

        Raises:
            ValueError: when JSON can't hold the content.
            OSError: when it can't be written; what was there stays.
        """
        if _RUN in content:
            raise ValueError(f"{name}.json has no room for {_RUN!r}: that name is its own")
        told = {_RUN: self.run if self.begun else None, **_finite(content)}
        _sealed_json.write(self._folder / f"{name}.json", told, version=_RECORD_VERSION)

    def read(self, name: str) -> dict[str, Any] | None:
        """What `write` was last given under this name in this run, or None.

        Raises:
            ValueError: when the file is damaged.
        """
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        told = _files.read_json_object(path)
        begun = self._begun_with() if self.begun else {_sealed_json.VERSION: _VERSION}
        if begun[_sealed_json.VERSION] < 3 and _sealed_json.VERSION not in told:
            return told  # of an earlier version
        told = _sealed_json.opened(told, path, newest=_RECORD_VERSION)
        if told.pop(_RUN, None) != begun.get(_ID):
            return None  # of the run that this one replaced
        return {name: value for name, value in told.items() if name != _sealed_json.VERSION}

    def _begun_with(self) -> dict[str, Any]:
        path = self._folder / _FILE
        if not self.begun:
            raise ValueError(
                f"{self._folder} holds no run to go on with: {_FILE} is missing. Expected the "
                "folder of a run that was begun"
            )
        told = _files.read_json_object(path)
        if _sealed_json.VERSION not in told:
            told = {_sealed_json.VERSION: told.get("format", 1), **told}
        return _sealed_json.opened(told, path, newest=_VERSION, sealed_since=3)


def _finite(content: Any) -> Any:
    """The content with None for each number that is not finite, which JSON has no word for."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
