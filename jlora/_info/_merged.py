"""A model that an adapter was merged into: from what, with what, in which files."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _words
from jlora._files import read_json_object
from jlora._info import _text
from jlora._safetensors import headers

KIND = "merged model"


def facts(directory: Path) -> dict[str, Any]:
    """What ``jlora.json``, ``config.json`` and the headers say.

    Raises:
        ValueError: when one is damaged.
    """
    origin = read_json_object(directory / "jlora.json")
    config = read_json_object(directory / "config.json")
    files = sorted(directory.glob("*.safetensors"))
    tensors = headers(files)
    return {
        "kind": KIND,
        "path": str(directory),
        "bytes": sum(file.stat().st_size for file in files),
        "files": len(files),
        "parameters": sum(math.prod(header.shape) for header in tensors.values()),
        "dtypes": dict(collections.Counter(header.dtype for header in tensors.values())),
        "architecture": config.get("model_type"),
        "layers": config.get("num_hidden_layers"),
        "model": origin["model"],
        "merged": origin["merged"],
        "jlora": origin["jlora"],
        "metadata": origin["metadata"],
    }


def lines(known: Mapping[str, Any]) -> list[str]:
    """The facts to be read."""
    merged, dtypes = known["merged"], ", ".join(known["dtypes"])
    about = _text.pairs(
        {
            "model": known["path"],
            "size": f"{_words.size(known['bytes'])} in {known['files']} "
            f"file{'s' if known['files'] > 1 else ''}, {known['parameters']:,} parameters, "
            + dtypes,
            "kind": known["architecture"],
            "made of": known["model"],
            "merged": f"{len(merged)} adapted {'leaf' if len(merged) == 1 else 'leaves'}"
            if merged
            else "nothing",
            "notes": _text.listed(known["metadata"]),
            "by": f"jlora {known['jlora']}",
        }
    )
    rows = [(path, leaf["kind"], leaf["rank"] or "-") for path, leaf in merged.items()]
    return [*about, "", *_text.table(("leaf", "kind", "rank"), rows)] if rows else about
