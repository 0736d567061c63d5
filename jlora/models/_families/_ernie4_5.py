"""ERNIE 4.5 without experts (Baidu 2025): llama with neighbours rotated together."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import Gguf
from jlora.models._families._llama import BIASES, DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads

ERNIE4_5 = Family(
    architecture="Ernie4_5ForCausalLM",
    classifier=None,
    leaves={**LEAVES, **BIASES},
    parts=(
        *(SIZES, Heads(), Activation(), Rope(theta=500_000.0)),
        Biases(qkv="use_bias", o="use_bias", mlp="use_bias"),
    ),
    features={"interleaved": True},
    defaults={
        **DEFAULTS,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "use_bias": False,
    },
    settings_aside=frozenset({"compression_ratio"}),
    gguf=Gguf("ernie4_5"),
)
