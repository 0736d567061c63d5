"""Packages that only some files and formats need, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any


def requires(package: str, install: str = '"jlora[train]"') -> Any:
    """The imported package.

    Raises:
        ValueError: when it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"the package {package} is needed for this: pip install {install} ({error})"
        ) from None
