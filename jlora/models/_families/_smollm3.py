"""SmolLM 3 (Hugging Face 2025): llama in which every fourth layer is not rotated."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import PAIRS, Gguf
from jlora.models._families._llama import BIASES, DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads
from jlora.models._families._window_settings import LayerWindows, RotatedLayers, rotates

_WINDOWS = LayerWindows(
    switch="use_sliding_window", slides=lambda settings, layer: not rotates(settings, layer)
)

SMOLLM3 = Family(
    architecture="SmolLM3ForCausalLM",
    leaves={**LEAVES, **BIASES},
    parts=(
        *(SIZES, Heads(), Activation(), Biases(mlp="mlp_bias"), Rope(theta=2_000_000.0)),
        *(RotatedLayers(), _WINDOWS),
    ),
    features={},
    defaults={
        **DEFAULTS,
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layer_interval": 4,
    },
    settings_aside=frozenset({"max_window_layers"}),
    gguf=Gguf("smollm3", undo=PAIRS),
)
