"""What a folder is: an adapter, a run, a merged model; read from its descriptions alone.

One file for each kind, with ``facts(directory)``, which JSON can hold, and ``lines(facts)``, which
a person reads.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from jlora._info import _adapter, _merged, _peft, _run

# By the file that each kind of folder has.
KINDS: dict[str, ModuleType] = {
    "adapter.json": _adapter,
    "run.json": _run,
    "adapter_config.json": _peft,
    "jlora.json": _merged,
}


def facts(directory: str | Path) -> dict[str, Any]:
    """What the folder holds, as JSON can hold it; no weight is read.

    Raises:
        ValueError: when it is nothing that jlora knows, or damaged.
    """
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        raise ValueError(f"{directory} is no folder: expected an adapter's, a run's or a model's")
    found = [name for name in KINDS if (directory / name).exists()]
    if not found:
        names = sorted(entry.name for entry in directory.iterdir())
        raise ValueError(
            f"{directory} is nothing that jlora knows: expected one of {', '.join(KINDS)}. "
            f"It holds {', '.join(names[:5]) or 'nothing'}"
        )
    try:
        return KINDS[found[0]].facts(directory)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{directory / found[0]} is damaged: {error!r}") from None


def text(known: dict[str, Any]) -> str:
    """The facts to be read at a terminal."""
    [module] = [module for module in KINDS.values() if known["kind"] == module.KIND]
    return "\n".join(module.lines(known))
