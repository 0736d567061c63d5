"""Qwen 1.5 and 2 with experts (arXiv 2407.10671): one more expert, gated, for all tokens."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import Gguf, mixture
from jlora.models._families._llama import ATTENTION_BIASES, DEFAULTS, LEAVES
from jlora.models._families._qwen3_moe import EXPERT_LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Mixture, Settings
from jlora.models._families._window_settings import LayerWindows
from jlora.models._files._torch_tensors import linear


def _slides(settings: Settings, layer: int) -> bool:
    return layer % 2 == 0 and layer < settings.get("max_window_layers", 28)


EXPERT_ENTRIES = {
    **mixture("num_experts", "moe_intermediate_size"),
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}

QWEN2_MOE = Family(
    architecture="Qwen2MoeForCausalLM",
    leaves={
        **LEAVES,
        **ATTENTION_BIASES,
        **EXPERT_LEAVES,
        **{
            f"layers/mlp/shared/{name}/kernel": linear(
                f"model.layers.{{}}.mlp.shared_expert.{name}.weight"
            )
            for name in ("gate_proj", "up_proj", "down_proj")
        },
        "layers/mlp/shared_gate/kernel": linear("model.layers.{}.mlp.shared_expert_gate.weight"),
    },
    parts=(
        *(SIZES, Heads(), Activation(), Rope(), Biases(qkv="qkv_bias", o=None)),
        Mixture(shared="shared_expert_intermediate_size"),
        LayerWindows(switch="use_sliding_window", slides=_slides),
    ),
    features={},
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 16,
        "qkv_bias": True,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "norm_topk_prob": False,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    gguf=Gguf("qwen2moe", entries=EXPERT_ENTRIES),
)
