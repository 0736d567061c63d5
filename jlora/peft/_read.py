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
        ValueError: when a file is missing or damaged.
    """
    found = settings(directory)
    if not _mlx.is_one(directory):
        return found, _tensors.read(directory)
    tensors, modules = _mlx.as_peft(_tensors.read(directory, name=_mlx.FILE))
    return {**found, "target_modules": modules}, tensors
