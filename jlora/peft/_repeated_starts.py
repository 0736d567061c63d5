"""PiSSA and OLoRA, whose start PEFT repeats on loading, as adapters of the original weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jlora._config import LoraConfig
from jlora._lora_dict import Lora
from jlora._rebase import rebase
from jlora._split import split
from jlora.peft import _fields
from jlora.peft._configuration import configuration
from jlora.peft._layout import Layout


def is_repeated(settings: Mapping[str, Any]) -> bool:
    """Whether PEFT makes the start again, out of the weight, when it loads the adapter."""
    start = settings["init_lora_weights"]
    return isinstance(start, str) and start.lower() in _fields.REPEATED


def of_original(
    settings: Mapping[str, Any], lora: Lora, layout: Layout
) -> tuple[Lora, dict[str, Any]]:
    """The adapter without what PEFT takes out of the weight when it loads it, and its settings.

    Embeddings are as they were: PEFT starts them as any other.
    """
    config = configuration(settings, lora, layout.leaves)
    moved = {
        path: node
        for path, node in lora.items()
        if node.targeted and not layout.leaves[path].embeds
    }
    if fused := [path for path in moved if not _is_one_module(layout, path)]:
        raise ValueError(
            f"init_lora_weights is {settings['init_lora_weights']!r}: its start is one of each "
            f"torch module, which {', '.join(fused)} are not. Convert it in PEFT: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    patterns = {LoraConfig.pattern_of(path) for path in moved}
    _, start = split(
        {path: layout.leaves[path].base() for path in moved},
        dataclasses.replace(
            config,
            targets=tuple(patterns),
            rank_pattern={p: r for p, r in config.rank_pattern.items() if p in patterns},
            alpha_pattern={p: a for p, a in config.alpha_pattern.items() if p in patterns},
            bias="none",
            train=(),
            tokens={},
            dtype="float32",
        ),
        jax.random.key(0),
        axes={path: node.axes for path, node in moved.items()},  # type: ignore
    )
    wider, _ = rebase(moved, start, config)
    growth = 2**0.5 if settings["use_rslora"] else 2
    return {**lora, **wider}, {
        **settings,
        "r": 2 * settings["r"],
        "lora_alpha": growth * settings["lora_alpha"],
        "init_lora_weights": True,
    }


def _is_one_module(layout: Layout, path: str) -> bool:
    """Whether a leaf's matrices are torch modules, one each."""
    return all(
        len(parameter.parts) == 1 and part.ours == slice(0, part.leaf.outputs)
        for parameter in layout.of_leaf(path)
        for part in parameter.parts
    )
