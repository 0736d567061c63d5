"""An adapter in PEFT's format: its configuration, and what the headers of its tensors say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _words
from jlora._files import read_json_object
from jlora._info import _text
from jlora._safetensors import Header, headers
from jlora.peft import _fields, _mlx, _tensors
from jlora.peft._naming import PREFIX

KIND = "peft adapter"

_SHOWN = ("use_rslora", "use_dora", "init_lora_weights", "lora_dropout", "bias", "rank_pattern")
_SHOWN = (*_SHOWN, "alpha_pattern", "modules_to_save", "layers_to_transform", "task_type")


def facts(directory: Path) -> dict[str, Any]:
    """What ``adapter_config.json`` and the headers say; a ``.bin`` file is never opened.

    Raises:
        ValueError: when one is damaged.
    """
    config = read_json_object(directory / _fields.FILE)
    # either tool's file may be left over beside the other's configuration
    file = directory / (_mlx.FILE if _mlx.is_one(directory) else _tensors.FILE)
    tensors = headers([file]) if file.exists() else {}
    for name in ("target_modules", "lora_parameters"):
        if isinstance(config.get(name), int | float):
            raise ValueError(f"{directory}: {name} is {config[name]!r} in {_fields.FILE}")
    return {
        "kind": KIND,
        "path": str(directory),
        "bytes": sum(each.stat().st_size for each in directory.rglob("*") if each.is_file()),
        "parameters": sum(math.prod(header.shape) for header in tensors.values()),
        "config": config,
        "file": file.name,
        "modules": _modules(tensors),
    }


def lines(known: Mapping[str, Any]) -> list[str]:
    """The facts to be read."""
    config, modules = known["config"], known["modules"]
    mlx = config.get("lora_parameters") or {}
    targets = config.get("target_modules", mlx.get("keys")) or ""
    further = {name: config[name] for name in _SHOWN if config.get(name)}
    dtypes = sorted({dtype for module in modules for dtype in module["dtypes"]})
    about = _text.pairs(
        {
            "adapter": f"{known['path']} ({'mlx-lm' if mlx else 'PEFT'})",
            "size": f"{_words.size(known['bytes'])} on disk, {known['parameters']:,} parameters, "
            + ", ".join(dtypes)
            if modules
            else f"{_words.size(known['bytes'])} on disk; {known['file']} is missing",
            "method": str(config.get("peft_type", config.get("fine_tune_type"))).lower(),
            "targets": targets
            if isinstance(targets, str)
            else ", ".join(sorted(map(str, targets))),
            "rank": config.get("r", mlx.get("rank")),
            "alpha": config.get("lora_alpha"),
            "scale": mlx.get("scale"),
            "also": _text.listed(further),
            "base": config.get("base_model_name_or_path", config.get("model")),
        }
    )
    rows = [
        (module["path"], ", ".join(module["holds"]), module["count"], module["parameters"])
        for module in modules
    ]
    if rows:
        about += ["", *_text.table(("module", "holds", "layers", "parameters"), rows)]
    return about


def _modules(tensors: Mapping[str, Header]) -> list[dict[str, Any]]:
    """The tensors by module, the layers of one kind together."""
    modules: dict[str, dict[str, Any]] = {}
    for name, header in tensors.items():
        module, _, part = name.removeprefix(PREFIX).partition(".lora_")
        kind = re.sub(r"\.\d+(?=\.|$)", ".*", module)
        what = f"lora_{part.removesuffix('.weight')}" if part else "whole"
        entry = modules.setdefault(
            kind, {"path": kind, "holds": {}, "in": set(), "dtypes": set(), "parameters": 0}
        )
        entry["holds"].setdefault(what, list(header.shape))
        entry["in"].add(module)
        entry["dtypes"].add(header.dtype)
        entry["parameters"] += math.prod(header.shape)
    return [
        {
            "path": entry["path"],
            "holds": dict(sorted(entry["holds"].items())),
            "count": len(entry["in"]),
            "dtypes": sorted(entry["dtypes"]),
            "parameters": entry["parameters"],
        }
        for entry in modules.values()
    ]
