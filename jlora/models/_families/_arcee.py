"""Arcee's AFM (2025): llama with an MLP without gate, its activation relu squared."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import PAIRS, Gguf
from jlora.models._families._llama import BIASES, DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads

ARCEE = Family(
    architecture="ArceeForCausalLM",
    leaves={path: leaf for path, leaf in (LEAVES | BIASES).items() if "gate_proj" not in path},
    parts=(SIZES, Heads(), Activation(), Biases(mlp="mlp_bias"), Rope()),
    features={"gated": False},
    defaults={
        **DEFAULTS,
        "rms_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "attention_bias": False,
        "mlp_bias": False,
    },
    gguf=Gguf("arcee", undo=PAIRS),
)
