"""An adapter's two files as PEFT would write them today, whichever tool wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jlora.peft import _fields, _mlx, _tensors


def settings(directory: Path) -> dict[str, Any]:
    """Every honoured field of the configuration.

    Raises:
        ValueError: when there is none, or it asks for what jlora does not have.
    """
    return _mlx.settings(directory) if _mlx.is_one(directory) else _fields.read(directory)


def contents(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration, and the tensors by their names in the model.

    Raises:
        ValueError: when a file is missing or damaged, or both were replaced in the meantime.
    """
    version = _version(directory / _fields.FILE)
    found = settings(directory)
    if _mlx.is_one(directory):
        tensors, modules = _mlx.as_peft(_tensors.read(directory, name=_mlx.FILE))
        found = {**found, "target_modules": modules}
    else:
        tensors = _tensors.read(directory)
    if _version(directory / _fields.FILE) != version:
        raise ValueError(f"{directory} was replaced while it was read: read it once more")
    return found, tensors


def _version(path: Path) -> tuple[int, ...] | None:
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
