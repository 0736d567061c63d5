"""Qwen 3 (arXiv 2505.09388): llama with normed queries and keys."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import Gguf
from jlora.models._families._llama import BIASES, DEFAULTS, HEAD_NORMS, LEAVES
from jlora.models._families._qwen2 import QWEN2
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads
from jlora.models._families._window_settings import LayerWindows

_WINDOWS = LayerWindows(switch="use_sliding_window")

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    leaves={**LEAVES, **BIASES, **HEAD_NORMS},
    parts=(SIZES, Heads(), Activation(), Biases(), Rope(), _WINDOWS),
    features={"qk_norm": True},
    defaults={**QWEN2.defaults, **DEFAULTS, "head_dim": 128, "attention_bias": False},
    gguf=Gguf("qwen3"),
)
