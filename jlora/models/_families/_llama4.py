"""Llama 4's text (Meta 2025): experts weighted on their input, chunks in the rotated layers.

The published models have a vision tower beside their decoder, which is left aside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora.models._families._family import Family, Nested
from jlora.models._families._gguf_route import Gguf, mixture
from jlora.models._families._llama import ATTENTION_BIASES, DEFAULTS, LEAVES, without_mlp
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Same, Settings
from jlora.models._families._window_settings import ChunkedLayers, RotatedLayers
from jlora.models._files._torch_tensors import experts_as_ours, linear, router
from jlora.models._net._config import DecoderConfig
from jlora.models._net._part_configs import Experts, Sharpening

_MLP = "model.layers.{}.feed_forward"


@dataclasses.dataclass(frozen=True)
class _Mixture:
    """The experts and the one that all tokens go to, in the layers that `moe_layers` names."""

    def read(self, settings: Settings) -> dict[str, Any]:
        names = ("num_local_experts", "num_experts_per_tok", "intermediate_size")
        count, chosen, width = (settings.whole(name) for name in names)
        layers = settings.get("num_hidden_layers", 0)
        step = settings.get("interleave_moe_layer_step", 1)
        named = settings.get("moe_layers")
        named = range(step - 1, layers, step) if named is None else named
        sparse = tuple(layer in named for layer in range(layers))
        if None in (count, chosen, width) or not any(sparse):
            return {}
        experts = Experts(
            *(count, chosen, width),
            normalised=False,
            sigmoid=True,
            weighted_input=True,
            shared_width=width,
        )
        return {"experts": experts, "expert_layers": None if all(sparse) else sparse}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        if (experts := config.experts) is None:
            return {"moe_layers": []}
        sparse = config.expert_layers or (True,) * config.layers
        return {
            "num_local_experts": experts.count,
            "num_experts_per_tok": experts.chosen,
            "intermediate_size": experts.width,
            "moe_layers": [layer for layer, its in enumerate(sparse) if its],
        }


@dataclasses.dataclass(frozen=True)
class _Sharpening:
    """Queries of layers that are not rotated, longer the longer the text."""

    def read(self, settings: Settings) -> dict[str, Any]:
        by, every = settings.number("attn_scale"), settings.whole("floor_scale")
        if not settings.get("attn_temperature_tuning") or None in (by, every):
            return {"sharpening": None}
        return {"sharpening": Sharpening(float(by), every)}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        if (sharpening := config.sharpening) is None:
            return {"attn_temperature_tuning": False}
        return {
            "attn_temperature_tuning": True,
            "attn_scale": sharpening.by,
            "floor_scale": sharpening.every,
        }


def _as_llama_cpp_takes_it(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A window of 0 stands for a model without chunks, all of whose layers are rotated."""
    layers, chunk = given["num_hidden_layers"], given["attention_chunk_size"]
    return {
        "attention_chunk_size": 8192,
        "no_rope_layers": [1] * layers if chunk == 0 else None,
        "use_qk_norm": given["num_local_experts"] != 128,
    }


LLAMA4_TEXT = Family(
    architecture="Llama4ForCausalLM",
    classifier=None,
    leaves={
        **without_mlp(LEAVES),
        **ATTENTION_BIASES,
        "layers/mlp/router/kernel": router(f"{_MLP}.router.weight"),
        **{
            f"layers/mlp/experts/{name}/kernel": experts_as_ours(
                f"{_MLP}.experts.{name}", turned_in_peft=True
            )
            for name in ("gate_up_proj", "down_proj")
        },
        **{
            f"layers/mlp/{path}{name}/kernel": linear(f"{_MLP}.{module}{name}.weight")
            for path, module in (("", ""), ("shared/", "shared_expert."))
            for name in ("gate_proj", "up_proj", "down_proj")
        },
    },
    parts=(
        Same(
            {
                "vocabulary": "vocab_size",
                "width": "hidden_size",
                "layers": "num_hidden_layers",
                "mlp_width": "intermediate_size_mlp",
                "max_length": "max_position_embeddings",
                "norm_epsilon": "rms_norm_eps",
                "tied": "tie_word_embeddings",
                "qk_rms": "use_qk_norm",
            }
        ),
        *(Heads(), Activation(), Biases(), Rope(theta=500000.0)),
        *(_Mixture(), RotatedLayers(), ChunkedLayers(), _Sharpening()),
    ),
    features={"interleaved": True},
    defaults={
        **DEFAULTS,
        "rms_norm_eps": 1e-5,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "attention_bias": False,
    },
    settings_aside=frozenset({"for_llm_compressor"}),
    gguf=Gguf(
        "llama4",
        entries={
            **mixture("num_local_experts", "intermediate_size"),
            "feed_forward_length": "intermediate_size_mlp",
            "interleave_moe_layer_step": "interleave_moe_layer_step",
            "attention.sliding_window": "attention_chunk_size",
        },
        missing=_as_llama_cpp_takes_it,
    ),
)

LLAMA4 = dataclasses.replace(
    LLAMA4_TEXT,
    architecture="Llama4ForConditionalGeneration",
    leaves={
        path: dataclasses.replace(leaf, name=f"language_model.{leaf.name}")
        for path, leaf in LLAMA4_TEXT.leaves.items()
    },
    tensors_aside=("vision_model.", "multi_modal_projector."),
    gguf=None,  # llama.cpp keeps the vision tower in a file of its own
    nested=Nested(setting="text_config", model_type="llama4_text"),
)
