"""A Python file of a person's own as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def loaded(path: Path, name: str) -> ModuleType:
    """The module that the file makes, known by this name from then on; what it raises, it raises.

    Args:
        path: ends in ``.py``.
        name: in `sys.modules`, so that its classes can be pickled and found.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
