"""Granite 3 (IBM 2024): llama with multipliers on embedding, scores, residuals and logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import PAIRS, Gguf
from jlora.models._families._llama import BIASES, DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Same, Settings
from jlora.models._net._config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class _LogitsScaling:
    """Logits are divided by ``logits_scaling``."""

    def read(self, settings: Settings) -> dict[str, Any]:
        scaling = settings.number("logits_scaling")
        if scaling == 0:
            settings.problems.append("logits_scaling is 0, by which nothing can be divided")
        return {"logit_scale": 1 / scaling} if scaling else {}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {"logits_scaling": 1 / config.logit_scale}


_MULTIPLIERS = Same(
    {
        "embedding_scale": "embedding_multiplier",
        "attention_scale": "attention_multiplier",
        "residual_scale": "residual_multiplier",
    }
)
GRANITE_PARTS = (SIZES, Heads(), Activation(), Rope(), _MULTIPLIERS, _LogitsScaling())
GRANITE_DEFAULTS = {
    **DEFAULTS,
    "attention_bias": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}

GRANITE_ENTRIES: dict[str, str | None] = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def without_multipliers(given: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp takes where the header has none."""
    head_dim = given.get("head_dim")
    return {
        "attention_multiplier": head_dim**-0.5 if head_dim else None,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    }


GRANITE = Family(
    architecture="GraniteForCausalLM",
    classifier=None,
    leaves={**LEAVES, **BIASES},
    parts=(*GRANITE_PARTS, Biases(mlp="mlp_bias")),
    features={},
    defaults={**GRANITE_DEFAULTS, "mlp_bias": False},
    gguf=Gguf(
        "granite",
        entries=GRANITE_ENTRIES,
        missing=without_multipliers,
        undo=PAIRS,
    ),
)
