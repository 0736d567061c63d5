"""Adapters of mlx-lm: the same low-rank deltas under other names, in another orientation.

``adapters.safetensors`` holds ``lora_a`` (in, rank), ``lora_b`` (rank, out) and DoRA's ``m``;
``adapter_config.json`` holds all flags of the run that made it, of which mlx-lm reads
``fine_tune_type``, ``num_layers`` and ``lora_parameters`` again. Its ``scale`` multiplies the
product as it is: it is no alpha over rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora._words import first_few
from jlora.peft import _fields

FILE = "adapters.safetensors"
_OWN = ("lora_parameters", "fine_tune_type")
_PARAMETERS = ("rank", "scale", "dropout", "keys", "alpha")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|wpe)$")


def is_one(directory: Path) -> bool:
    """Whether the folder's configuration is mlx-lm's."""
    found = _fields.found_in(directory)
    return "peft_type" not in found and any(name in found for name in _OWN)


def settings(directory: Path) -> dict[str, Any]:
    """What the configuration says, in PEFT's words; the tensors say which modules.

    Raises:
        ValueError: when it asks for what jlora does not have.
    """
    found, path = _fields.found_in(directory), directory / _fields.FILE
    kind = found.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ValueError(f"{path}: fine_tune_type is {kind!r}: expected 'lora' or 'dora'")
    given = found.get("lora_parameters")
    if not isinstance(given, dict) or not {"rank", "scale"} <= given.keys():
        raise ValueError(f"{path}: lora_parameters is {given!r}: expected rank, scale and dropout")
    if unknown := [name for name in given if name not in _PARAMETERS]:
        raise ValueError(f"{path}: lora_parameters has {', '.join(unknown)}: jlora has no such")
    rank, scale, alpha = given["rank"], given["scale"], given.get("alpha")
    if type(rank) is not int or not isinstance(scale, int | float):
        raise ValueError(f"{path}: rank is {rank!r} and scale {scale!r}: expected numbers")
    if alpha not in (None, rank):
        # releases before it was dropped multiplied by alpha / rank as well
        raise ValueError(
            f"{path}: lora_parameters has alpha {alpha!r} beside scale, which mlx-lm reads no "
            "more: remove it, where scale alone is meant"
        )
    said = {
        **_fields.HONOURED,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": given.get("dropout") or 0.0,
        "use_dora": kind == "dora",
        # a tied embedding's delta is its head's as well
        "ensure_weight_tying": True,
        "base_model_name_or_path": found.get("model"),
    }
    if problems := list(_fields.wrong(said)):
        raise ValueError(f"{path} can't be honoured:{first_few(problems, 12)}")
    return said


def as_peft(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors with PEFT's names and orientation, and the modules that they adapt."""
    found: dict[str, np.ndarray] = {}
    modules: dict[str, None] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b", "m"):
            found[name] = tensor
            continue
        modules[module] = None
        if part == "m":
            found[f"{module}.lora_magnitude_vector"] = tensor
        elif _EMBEDDING.search(module):
            found[f"{module}.lora_embedding_{part[-1].upper()}"] = tensor.swapaxes(-1, -2)
        else:
            found[f"{module}.lora_{part[-1].upper()}.weight"] = tensor.swapaxes(-1, -2)
    return found, list(modules)
