"""Seed-OSS (ByteDance 2025): llama with biases on queries, keys and values."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import Gguf
from jlora.models._families._llama import BIASES, DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads

SEED_OSS = Family(
    architecture="SeedOssForCausalLM",
    leaves={**LEAVES, **BIASES},
    parts=(
        *(SIZES, Heads(), Activation(), Rope()),
        Biases(o="attention_out_bias", mlp="mlp_bias"),
    ),
    features={},
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
        "attention_out_bias": False,
        "mlp_bias": False,
    },
    gguf=Gguf("seed_oss"),
)
