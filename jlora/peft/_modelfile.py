"""Ollama's Modelfile for a base and an adapter beside it.

Its template and its stop words Ollama reads from the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jlora.peft import _gguf

FILE = "Modelfile"
_QUOTES = '"""'


def content(base: str, system: Any) -> str:
    """The text: where the base is, the adapter, the system message of its training.

    Args:
        base: a GGUF file, or what Ollama calls the model.
        system: the message, if there is one.

    Raises:
        ValueError: when the system message can't be quoted.
    """
    path = Path(base).expanduser()
    lines = [f"FROM {path.resolve() if path.is_file() else base}", f"ADAPTER ./{_gguf.FILE}"]
    if system:
        if _QUOTES in system or system.endswith('"'):
            raise ValueError(f"the system message can't stand in a Modelfile: {system!r}")
        lines.append(f"SYSTEM {_QUOTES}{system}{_QUOTES}")
    return "\n".join(lines) + "\n"
