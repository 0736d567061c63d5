"""A JSON file that says which version wrote it, and the sum of all that it says.

So a damaged one is never read as something else, and one of a newer version is not guessed at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _files

VERSION, SUM = "version", "sum"


class NewerVersionError(ValueError):
    """A whole file, of a version that this jlora does not know."""


def write(path: Path, content: Mapping[str, Any], *, version: int) -> None:
    """Writes the file in one step.

    Raises:
        ValueError: when JSON can't hold the content, or it uses a name that is the seal's.
        OSError: when it can't be written; what was there stays.
    """
    if taken := [name for name in (VERSION, SUM) if name in content]:
        raise ValueError(f"{path.name} has no room for {taken[0]!r}: that name is its own")
    told = {VERSION: version, **content}
    told = json.loads(_text(told, path))  # as it will be read: its keys are texts then
    _files.write_json(path, {**told, SUM: _sum(told, path)})


def read(path: Path, *, newest: int, sealed_since: int = 1) -> dict[str, Any]:
    """What the file says, its ``version`` too, 1 where it says none.

    Args:
        path: the file.
        newest: the last version that can be read.
        sealed_since: the first version that has a sum.

    Raises:
        ValueError: when it is missing or damaged; a `NewerVersionError` when it is whole and newer.
    """
    return opened(_files.read_json(path), path, newest=newest, sealed_since=sealed_since)


def opened(told: Any, path: Path, *, newest: int, sealed_since: int = 1) -> dict[str, Any]:
    """What the JSON of the file says, as `read`."""
    if not isinstance(told, dict):
        raise ValueError(f"{path} is damaged: expected an object")
    version = told.get(VERSION, 1)
    if type(version) is not int or version < 1:
        raise ValueError(f"{path} is damaged: its version is {version!r}")
    if SUM in told:
        known = told.pop(SUM)
        if known != _sum(told, path):
            raise ValueError(f"{path} is damaged: it is not what was written")
    elif sealed_since <= version <= newest:
        raise ValueError(f"{path} is damaged: its sum is missing")
    check_version(version, path, newest=newest)
    return {VERSION: version, **told}


def check_version(version: int, path: Path, *, newest: int) -> None:
    """Raises a `NewerVersionError` where the file is of a later version than the newest known."""
    if version > newest:
        raise NewerVersionError(
            f"{path} was written by a newer jlora: it is of version {version}, this one reads "
            f"versions up to {newest}"
        )


def _sum(told: Mapping[str, Any], path: Path) -> str:
    return hashlib.sha256(_text(told, path)).hexdigest()


def _text(told: Mapping[str, Any], path: Path) -> bytes:
    """The JSON in one form, however the file spells it; the order of its names is as it stands."""
    try:
        return json.dumps(told, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:  # half a character, too
        raise ValueError(f"{path.name} would hold what JSON can't: {error}") from None
