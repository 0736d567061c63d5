"""Qwen 3 with experts (arXiv 2505.09388): a mixture of them in place of every layer's MLP."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import Gguf, mixture
from jlora.models._families._llama import (
    ATTENTION_BIASES,
    DEFAULTS,
    HEAD_NORMS,
    LEAVES,
)
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Mixture
from jlora.models._families._window_settings import OneWindow
from jlora.models._files._torch_tensors import Stored, experts, linear, router

_EXPERTS = "model.layers.{}.mlp.experts"
EXPERT_LEAVES = {
    "layers/mlp/router/kernel": router("model.layers.{}.mlp.gate.weight"),
    "layers/mlp/experts/gate_up_proj/kernel": experts(
        f"{_EXPERTS}.gate_up_proj", "gate_proj", "up_proj"
    ),
    "layers/mlp/experts/down_proj/kernel": experts(f"{_EXPERTS}.down_proj", "down_proj"),
}


def mlp_beside_experts(path: str, module: str) -> dict[str, Stored]:
    """An MLP beside the experts, of whose modules PEFT thinks by their names that they are such."""
    return {
        f"{path}/{name}/kernel": linear(f"{module}.{name}.weight", as_parameter=True)
        for name in ("gate_proj", "up_proj", "down_proj")
    }


QWEN3_MOE = Family(
    architecture="Qwen3MoeForCausalLM",
    leaves={
        **LEAVES,
        **ATTENTION_BIASES,
        **HEAD_NORMS,
        **EXPERT_LEAVES,
        **mlp_beside_experts("layers/mlp", "model.layers.{}.mlp"),
    },
    parts=(
        *(SIZES, Heads(), Activation(), Biases(), Rope(), Mixture()),
        OneWindow(switch="use_sliding_window"),
    ),
    features={"qk_norm": True},
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 4,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "norm_topk_prob": False,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    # the number of experts has two names; every layer has the one window or none
    settings_aside=frozenset({"num_experts", "num_local_experts", "max_window_layers"}),
    gguf=Gguf(
        "qwen3moe",
        entries=mixture("num_experts", "moe_intermediate_size"),
        missing=lambda given: {"norm_topk_prob": True},
    ),
)
