"""An adapter in PEFT's terms as mlx-lm's: one rank and one scale for all, A and B turned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jlora.peft import _matching, _names
from jlora.peft._layout import Layout

# What mlx-lm has nothing like, with the value that says so.
_NOTHING = {
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "bias": "none",
    "lora_bias": False,
    "fan_in_fan_out": False,
}
_LAYER = re.compile(r"model\.layers\.(?P<number>\d+)\.(?P<module>.+)")
_PARTS = {
    "lora_A.weight": "lora_a",
    "lora_B.weight": "lora_b",
    "lora_embedding_A": "lora_a",
    "lora_embedding_B": "lora_b",
    "lora_magnitude_vector": "m",
}


def contents(
    tensors: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    layout: Layout,
    layers: int | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """The tensors and the configuration, or what mlx-lm has nothing like.

    Ranks are filled up with zeros to the highest; where scalings differ, B takes the difference.

    Args:
        tensors: as for PEFT, by their names in the model.
        settings: all fields of PEFT's configuration.
        layout: of the model.
        layers: how many the model has; None where it is no language model.
    """
    if layers is None:
        return {}, {}, ["mlx-lm adapts language models alone"]
    if (kind := settings["peft_type"]) != "LORA":
        return {}, {}, [f"it is of the type {kind}: mlx-lm has LoRA and DoRA alone"]
    problems = [
        f"{name} is {settings[name]!r}: mlx-lm has nothing like it"
        for name, nothing in _NOTHING.items()
        if settings[name] != nothing
    ]
    by_module: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        end = next((end for end in _PARTS if name.endswith(f".{end}")), None)
        if end is None:
            continue
        module = name.removesuffix(f".{end}")
        if module == _names.HEAD and layout.tied:
            continue  # mlx-lm's embedding is the head as well
        by_module.setdefault(module, {})[_PARTS[end]] = tensor
        if not (_LAYER.fullmatch(module) or module in ("model.embed_tokens", _names.HEAD)):
            problems.append(f"{module}: mlx-lm's models have no such module")
    if problems:
        return {}, {}, list(dict.fromkeys(problems))
    strengths = {module: _matching.rank_and_scaling(settings, module) for module in by_module}
    rank = max(rank for rank, _ in strengths.values())
    scale = max((scaling for _, scaling in strengths.values()), key=abs)
    written: dict[str, np.ndarray] = {}
    for module, parts in by_module.items():
        own, scaling = strengths[module]
        a, b = parts["lora_a"].T, parts["lora_b"].T
        if scaling != scale:
            b = (b.astype(np.float32) * np.float32(scaling / scale)).astype(b.dtype)
        written[f"{module}.lora_a"] = np.pad(a, ((0, 0), (0, rank - own)))
        written[f"{module}.lora_b"] = np.pad(b, ((0, rank - own), (0, 0)))
        if "m" in parts:
            written[f"{module}.m"] = parts["m"]
    found = [match for module in by_module if (match := _LAYER.fullmatch(module))]
    keys = {match["module"] for match in found} | {m for m in by_module if not _LAYER.fullmatch(m)}
    return (
        written,
        {
            "fine_tune_type": "dora" if settings["use_dora"] else "lora",
            "num_layers": layers - min((int(match["number"]) for match in found), default=0),
            "lora_parameters": {
                "rank": rank,
                "scale": float(scale),
                "dropout": settings["lora_dropout"],
                "keys": sorted(keys),
            },
        },
        [],
    )
