"""What is public: the rooms of the package, and the names of its own in each."""

import importlib
import inspect
from typing import Any

ROOMS = (
    "jlora",
    "jlora.extend",
    "jlora.checkpoint",
    "jlora.peft",
    "jlora.models",
    "jlora.data",
    "jlora.trainer",
)


def public_names(room: str) -> dict[str, Any]:
    """The room's own classes, functions and constants by name; no modules, and nobody else's."""
    module = importlib.import_module(room)
    return {
        name: value
        for name in dir(module)
        if not name.startswith("_")
        and not inspect.ismodule(value := getattr(module, name))
        and getattr(value, "__module__", "").startswith("jlora")
    }


def is_function_or_class(value: Any) -> bool:
    """Whether a docstring of its own can be expected of it: no constant."""
    return inspect.isclass(value) or inspect.isfunction(value)
