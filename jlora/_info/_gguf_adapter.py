"""An adapter of llama.cpp in a GGUF file: its header, and the shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _words
from jlora._info import _text
from jlora.peft import _gguf

KIND = "gguf adapter"


def is_one(path: Path) -> bool:
    """Whether a file that is there is an adapter, not a model."""
    from jlora.models._files import _gguf_fields

    if not (path.is_file() and _gguf.is_one(path)):
        return False
    try:
        return _gguf_fields.read(path)[0].get("general.type") == "adapter"
    except ValueError:  # no whole file: what is in the way is told as of a model
        return False


def facts(path: Path) -> dict[str, Any]:
    """What the header says; no tensor is read.

    Args:
        path: of the file, or of a folder that holds ``adapter.gguf``.

    Raises:
        ValueError: when it is damaged, or no adapter that jlora can honour.
    """
    file = path / _gguf.FILE if path.is_dir() else path
    known = _gguf.header(file)
    shapes = {name: _gguf.shape_of(tensor) for name, tensor in known.tensors.items()}
    return {
        "kind": KIND,
        "path": str(path),
        "bytes": file.stat().st_size,
        "parameters": sum(map(math.prod, shapes.values())),
        "dtypes": sorted({tensor.tensor_type.name for tensor in known.tensors.values()}),
        "architecture": known.architecture,
        "alpha": known.alpha,
        "base": known.base,
        "tensors": _by_kind(shapes),
    }


def lines(known: Mapping[str, Any]) -> list[str]:
    """The facts to be read."""
    ranks = [rank for each in known["tensors"] for rank in each["ranks"]]
    about = _text.pairs(
        {
            "adapter": f"{known['path']} (llama.cpp)",
            "size": f"{_words.size(known['bytes'])} on disk, {known['parameters']:,} parameters, "
            + ", ".join(known["dtypes"]),
            "of": f"{known['architecture']} models",
            "rank": _text.span(ranks) if ranks else "none",
            "alpha": f"{known['alpha']:g}" if known["alpha"] else "none: B holds the scaling",
            "base": known["base"],
        }
    )
    rows = [
        (each["tensor"], _text.span(each["ranks"]), each["count"], each["parameters"])
        for each in known["tensors"]
    ]
    header = ("tensor", "rank", "layers", "parameters")
    return [*about, *(["", *_text.table(header, rows)] if rows else [])]


def _by_kind(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """The adapted tensors, the layers of one kind together."""
    kinds: dict[str, dict[str, Any]] = {}
    for name, shape in shapes.items():
        tensor, _, end = name.rpartition(".")
        kind = re.sub(r"\.\d+(?=\.)", ".*", tensor)
        entry = kinds.setdefault(
            kind, {"tensor": kind, "ranks": set(), "count": 0, "parameters": 0}
        )
        entry["parameters"] += math.prod(shape)
        if end == "lora_a":
            entry["count"] += 1
            entry["ranks"].add(_gguf.rank_of(tensor, shape))
    return [{**entry, "ranks": sorted(entry["ranks"])} for entry in kinds.values()]
