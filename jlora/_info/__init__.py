"""What a folder or a file is: an adapter, a run, a model; read from its descriptions alone.

One file for each kind, with ``facts(directory)``, which JSON can hold, and ``lines(facts)``, which
a person reads.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from jlora import _hub
from jlora._info import _adapter, _gguf_adapter, _merged, _model, _peft, _run

# By the file that each kind of folder has.
KINDS: dict[str, ModuleType] = {
    "adapter.json": _adapter,
    "run.json": _run,
    "adapter_config.json": _peft,
    "jlora.json": _merged,
    "config.json": _model,
    "adapter.gguf": _gguf_adapter,
}

_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")  # a model's, with nothing beside


def facts(source: str | Path) -> dict[str, Any]:
    """What the folder, the file or the repository on the hub holds, as JSON can hold it.

    No weight is read.

    Raises:
        ValueError: when it is nothing that jlora knows, or damaged.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        return _elsewhere(str(source))
    found = [name for name in KINDS if (directory / name).exists()]
    if not found and any(file.suffix in _WEIGHTS for file in directory.iterdir()):
        return _model.facts(directory)
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


def _elsewhere(source: str) -> dict[str, Any]:
    """Of a file, of the default model, or of what is on the hub."""
    path = Path(source).expanduser()
    if _gguf_adapter.is_one(path):
        return _gguf_adapter.facts(path)
    if path.exists() and path.suffix != ".gguf":
        raise ValueError(
            f"{path} is no folder: expected an adapter's, a run's or a model's, or a .gguf file"
        )
    if not path.exists() and _hub.is_id(source) and _is_adapter(source):
        from jlora import peft

        return _peft.facts(peft.located(source))
    return _model.facts(source)


def _is_adapter(hub_id: str) -> bool:
    from jlora.models._files import _huggingface

    where = _huggingface.described(hub_id)
    return (where / "adapter_config.json").exists() and not (where / "config.json").exists()


def text(known: dict[str, Any]) -> str:
    """The facts to be read at a terminal."""
    [module] = [module for module in KINDS.values() if known["kind"] == module.KIND]
    return "\n".join(module.lines(known))
