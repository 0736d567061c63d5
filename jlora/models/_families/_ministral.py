"""Ministral (Mistral AI 2024): Mistral with a window in some layers or all."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._llama import DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Heads
from jlora.models._families._window_settings import LayerWindows

MINISTRAL = Family(
    architecture="MinistralForCausalLM",
    leaves=LEAVES,
    parts=(
        *(SIZES, Heads(), Activation(), Rope()),
        LayerWindows(slides=lambda settings, layer: True),
    ),
    features={},
    defaults={**DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096},
)
