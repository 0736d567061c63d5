"""gpt-oss (arXiv 2508.10925): experts with biases and a clamped gate, heads with sinks."""

from __future__ import annotations

import dataclasses
from typing import Any

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import WINDOWS, Gguf, mixture
from jlora.models._families._llama import BIASES, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Settings
from jlora.models._families._window_settings import LayerWindows
from jlora.models._files._torch_tensors import experts_as_ours, plain, router
from jlora.models._net._config import DecoderConfig
from jlora.models._net._part_configs import ClampedGate, Experts

_ATTENTION, _MLP = "model.layers.{}.self_attn", "model.layers.{}.mlp"
_PRODUCTS = ("gate_up_proj", "down_proj")
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclasses.dataclass(frozen=True)
class _Mixture:
    """The experts, each as wide as the MLP that they stand for."""

    def read(self, settings: Settings) -> dict[str, Any]:
        count, chosen, width, sharpness, limit = (
            settings.number(name)
            for name in (
                "num_local_experts",
                "num_experts_per_tok",
                "intermediate_size",
                "swiglu_alpha",
                "swiglu_limit",
            )
        )
        if None in (count, chosen, width):
            return {}
        clamped = ClampedGate(sharpness, limit)
        experts = Experts(
            *(count, chosen, width), normalised=True, biases=True, interleaved=True, clamped=clamped
        )
        return {"experts": experts}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        experts = config.experts
        if experts is None or experts.clamped is None:
            return {}
        return {
            "num_local_experts": experts.count,
            "num_experts_per_tok": experts.chosen,
            "swiglu_alpha": experts.clamped.sharpness,
            "swiglu_limit": experts.clamped.limit,
        }


GPT_OSS = Family(
    architecture="GptOssForCausalLM",
    leaves={
        **{path: leaf for path, leaf in (LEAVES | BIASES).items() if "/mlp/" not in path},
        "layers/attn/sinks": plain(f"{_ATTENTION}.sinks"),
        "layers/mlp/router/kernel": router(f"{_MLP}.router.weight"),
        "layers/mlp/router/bias": plain(f"{_MLP}.router.bias"),
        **{
            f"layers/mlp/experts/{name}/kernel": experts_as_ours(f"{_MLP}.experts.{name}")
            for name in _PRODUCTS
        },
        **{
            f"layers/mlp/experts/{name}/bias": plain(f"{_MLP}.experts.{name}_bias")
            for name in _PRODUCTS
        },
    },
    parts=(
        *(SIZES, Heads(), Activation(), Biases(), _Mixture(), LayerWindows(every=2)),
        Rope(theta=150000.0, missing=_YARN),
    ),
    features={"sinks": True},
    defaults={
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "attention_bias": True,
        "num_experts_per_tok": 4,
        "num_local_experts": 128,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    only={"hidden_act": ("silu", None)},
    settings_aside=frozenset({"initial_context_length", "experts_per_token"}),
    gguf=Gguf(
        "gpt-oss",
        entries={
            **WINDOWS,
            **mixture("num_local_experts", "intermediate_size"),
            "feed_forward_length": None,
        },
        missing=lambda given: {"layer_types": None},
    ),
)
