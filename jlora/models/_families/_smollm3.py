"""SmolLM 3 (Hugging Face 2025): llama in which every fourth layer is not rotated."""

from __future__ import annotations

import dataclasses
from typing import Any

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import PAIRS, Gguf
from jlora.models._families._llama import BIASES, DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Settings
from jlora.models._families._window_settings import LayerWindows
from jlora.models._net._config import DecoderConfig


def _rotates(settings: Settings, layer: int) -> bool:
    given = settings.get("no_rope_layers")
    if given is None:
        return (layer + 1) % settings.get("no_rope_layer_interval", 4) != 0
    return layer < len(given) and bool(given[layer])


@dataclasses.dataclass(frozen=True)
class _Rotated:
    """``no_rope_layers``, 1 for each layer that is rotated, or the interval of the others."""

    def read(self, settings: Settings) -> dict[str, Any]:
        layers = settings.get("num_hidden_layers", 0)
        given = settings.get("no_rope_layers")
        if given is not None and len(given) < layers:
            settings.problems.append(
                f"no_rope_layers has {len(given)} entries, expected at least {layers}"
            )
        rotated = tuple(_rotates(settings, layer) for layer in range(layers))
        return {"rotated": None if all(rotated) else rotated}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {"no_rope_layers": [int(turns) for turns in config.rotated or [1] * config.layers]}


_WINDOWS = LayerWindows(
    switch="use_sliding_window", slides=lambda settings, layer: not _rotates(settings, layer)
)

SMOLLM3 = Family(
    architecture="SmolLM3ForCausalLM",
    leaves={**LEAVES, **BIASES},
    parts=(
        *(SIZES, Heads(), Activation(), Biases(mlp="mlp_bias"), Rope(theta=2_000_000.0)),
        *(_Rotated(), _WINDOWS),
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
