"""The table of model families, out of the registry."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from jlora.models import _families


def table() -> str:
    """A row for each family: its name in config.json, what it is, what llama.cpp calls it."""
    about = _about()
    rows = [
        f"| `{name}` | {about[family.architecture]} | "
        f"{f'`{family.gguf.architecture}`' if family.gguf else ''} |\n"
        for name, family in {**_families.FAMILIES, **_families.ENCODERS}.items()
    ]
    head = "| `model_type` | which models, and what they have | GGUF |\n|---|---|---|\n"
    return head + "".join(rows)


def _about() -> dict[str, str]:
    """The first line of the file that makes each family, by its class in transformers."""
    about = {}
    for found in pkgutil.iter_modules(_families.__path__):
        module = importlib.import_module(f"{_families.__name__}.{found.name}")
        source = inspect.getsource(module)
        for name, value in vars(module).items():
            if isinstance(value, _families.Family) and f"\n{name} = " in source:
                about[value.architecture] = (module.__doc__ or "").splitlines()[0].removesuffix(".")
    return about
