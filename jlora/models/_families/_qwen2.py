"""Qwen 2 and 2.5 (arXiv 2407.10671): llama with biases on queries, keys and values."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import Gguf
from jlora.models._families._llama import BIASES, DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Heads
from jlora.models._families._window_settings import LayerWindows

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    leaves={**LEAVES, **BIASES},
    parts=(SIZES, Heads(), Activation(), Rope(), LayerWindows(switch="use_sliding_window")),
    features={"qkv_bias": True},
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    gguf=Gguf("qwen2"),
)
