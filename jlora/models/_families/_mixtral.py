"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with experts in place of every MLP."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import PAIRS, Gguf, mixture
from jlora.models._families._llama import DEFAULTS, LEAVES, without_mlp
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Heads, Mixture
from jlora.models._families._window_settings import OneWindow
from jlora.models._files._torch_tensors import experts, router

_IN_MEMORY, _IN_FILE = "model.layers.{}.mlp", "model.layers.{}.block_sparse_moe"

MIXTRAL = Family(
    architecture="MixtralForCausalLM",
    leaves={
        **without_mlp(LEAVES),
        "layers/mlp/router/kernel": router(
            f"{_IN_MEMORY}.gate.weight", in_file=f"{_IN_FILE}.gate.weight"
        ),
        "layers/mlp/experts/gate_up_proj/kernel": experts(
            f"{_IN_MEMORY}.experts.gate_up_proj", "w1", "w3", in_file=f"{_IN_FILE}.experts"
        ),
        "layers/mlp/experts/down_proj/kernel": experts(
            f"{_IN_MEMORY}.experts.down_proj", "w2", in_file=f"{_IN_FILE}.experts"
        ),
    },
    parts=(
        *(SIZES, Heads(), Activation(), Rope(theta=1_000_000.0), OneWindow()),
        Mixture("num_local_experts", "intermediate_size", always_normalised=True),
    ),
    features={},
    defaults={
        **DEFAULTS,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    gguf=Gguf(
        "llama",
        entries=mixture("num_local_experts"),
        undo=PAIRS,
        only_where=lambda entry: bool(entry("expert_count")),
    ),
)
