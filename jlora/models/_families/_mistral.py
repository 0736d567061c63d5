"""Mistral (Jiang et al. 2023, arXiv 2310.06825): llama with a window in every layer."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import PAIRS, Gguf
from jlora.models._families._llama import DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Heads
from jlora.models._families._window_settings import OneWindow

MISTRAL = Family(
    architecture="MistralForCausalLM",
    leaves=LEAVES,
    parts=(SIZES, Heads(), Activation(), Rope(), OneWindow()),
    features={},
    defaults={**DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096},
    gguf=Gguf(
        "mistral3",
        missing=lambda given: {"sliding_window": None},
        undo=PAIRS,
        of_folders="llama",
    ),
)
