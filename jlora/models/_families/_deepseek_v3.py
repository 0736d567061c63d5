"""DeepSeek-V3 (arXiv 2412.19437), R1: latent attention, experts in groups, first layers dense."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import GATE_UP, Gguf, Joined, mixture
from jlora.models._families._llama import DEFAULTS, LEAVES, without_mlp
from jlora.models._families._qwen3_moe import EXPERT_LEAVES, mlp_beside_experts
from jlora.models._families._rope_settings import SharperRope
from jlora.models._families._settings import Activation, Biases, Same, Settings
from jlora.models._files._torch_tensors import buffer, linear, plain
from jlora.models._net._config import DecoderConfig
from jlora.models._net._part_configs import Experts, Latent

_ATTENTION, _MLP = "model.layers.{}.self_attn", "model.layers.{}.mlp"


@dataclasses.dataclass(frozen=True)
class LatentHeads:
    """The heads, and the short vectors out of which queries, keys and values come."""

    def read(self, settings: Settings) -> dict[str, Any]:
        """heads, kv_heads, head_dim, latent."""
        heads = settings.whole("num_attention_heads")
        kv_heads = settings.whole("num_key_value_heads", needed=False)
        width, plain_, rotated, value = (
            settings.whole(name)
            for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        query_width = settings.whole("q_lora_rank", needed=False)
        head_dim = settings.whole("head_dim", needed=False)  # transformers' word for the rotated
        if head_dim not in (None, rotated):
            settings.problems.append(
                f"head_dim is {head_dim}: expected {rotated} as qk_rope_head_dim, or none"
            )
        if None in (width, plain_, rotated, value):
            return {}
        return {
            "heads": heads,
            "kv_heads": heads if kv_heads is None else kv_heads,
            "head_dim": plain_ + rotated,
            "latent": Latent(width, query_width, plain_, rotated, value),
        }

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """The settings."""
        names = Same({"heads": "num_attention_heads", "kv_heads": "num_key_value_heads"})
        if (latent := config.latent) is None:
            return names.write(config)
        return {
            **names.write(config),
            "kv_lora_rank": latent.width,
            "q_lora_rank": latent.query_width,
            "qk_nope_head_dim": latent.plain,
            "qk_rope_head_dim": latent.rotated,
            "v_head_dim": latent.value,
        }


@dataclasses.dataclass(frozen=True)
class GroupedExperts:
    """The experts, those that all tokens go to as one that is as wide as all of them."""

    def read(self, settings: Settings) -> dict[str, Any]:
        """experts, expert_layers."""
        names = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
        numbers = [settings.whole(name) for name in names]
        shared = settings.whole("n_shared_experts")
        dense = settings.whole("first_k_dense_replace", needed=False) or 0
        layers = settings.whole("num_hidden_layers", needed=False)
        scale = settings.number("routed_scaling_factor")
        routing = self._routing(settings)
        if None in (*numbers, shared, layers, scale, *routing.values()):
            return {}
        if dense >= layers:
            return {}
        count, chosen, width = numbers
        experts = Experts(
            *(count, chosen, width),
            shared_width=width * shared,
            scale=float(scale),
            wide_router=True,
            **routing,
        )
        sparse = tuple(layer >= dense for layer in range(layers)) if dense else None
        return {"experts": experts, "expert_layers": sparse}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """The settings."""
        if (experts := config.experts) is None:
            return {"first_k_dense_replace": config.layers}
        return {
            "n_routed_experts": experts.count,
            "num_experts_per_tok": experts.chosen,
            "moe_intermediate_size": experts.width,
            "n_shared_experts": (experts.shared_width or 0) // experts.width,
            "first_k_dense_replace": (config.expert_layers or (True,)).index(True),
            "routed_scaling_factor": experts.scale,
            **self._written(experts),
        }

    def _routing(self, settings: Settings) -> dict[str, Any]:
        """By what the experts are chosen."""
        return {
            "normalised": settings.flag("norm_topk_prob"),
            "sigmoid": True,
            "corrected": True,
            "groups": settings.whole("n_group"),
            "chosen_groups": settings.whole("topk_group"),
            "best_of_group": 2,
        }

    def _written(self, experts: Experts) -> dict[str, Any]:
        return {
            "norm_topk_prob": experts.normalised,
            "n_group": experts.groups,
            "topk_group": experts.chosen_groups,
        }


LATENT_LEAVES = {
    **without_mlp(LEAVES),
    "layers/attn/q_a_proj/kernel": linear(f"{_ATTENTION}.q_a_proj.weight"),
    "layers/attn/q_a_proj/bias": plain(f"{_ATTENTION}.q_a_proj.bias"),
    "layers/attn/q_a_norm/scale": plain(f"{_ATTENTION}.q_a_layernorm.weight"),
    "layers/attn/q_b_proj/kernel": linear(f"{_ATTENTION}.q_b_proj.weight"),
    "layers/attn/kv_a_proj/kernel": linear(f"{_ATTENTION}.kv_a_proj_with_mqa.weight"),
    "layers/attn/kv_a_proj/bias": plain(f"{_ATTENTION}.kv_a_proj_with_mqa.bias"),
    "layers/attn/kv_a_norm/scale": plain(f"{_ATTENTION}.kv_a_layernorm.weight"),
    "layers/attn/kv_b_proj/kernel": linear(f"{_ATTENTION}.kv_b_proj.weight"),
    "layers/attn/o_proj/bias": plain(f"{_ATTENTION}.o_proj.bias"),
    **EXPERT_LEAVES,
    **mlp_beside_experts("layers/mlp", _MLP),
    **mlp_beside_experts("layers/mlp/shared", f"{_MLP}.shared_experts"),
}
for _absent in ("k_proj", "v_proj"):
    del LATENT_LEAVES[f"layers/attn/{_absent}/kernel"]


def _by_head(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    (heads, width, plain_), (_, value, _) = shapes
    return (heads * (plain_ + value), width)


def _keys_and_values(found: Sequence[np.ndarray], config: DecoderConfig) -> np.ndarray:
    """Each head's rows that make its key, which lie (in, out), and those that make its value."""
    keys, values = found
    rows = np.concatenate([keys.swapaxes(1, 2), values], axis=1)
    return rows.reshape(-1, rows.shape[-1])


def _keys_apart_from_values(
    whole: np.ndarray, shapes: Sequence[tuple[int, ...]], config: DecoderConfig
) -> Sequence[np.ndarray]:
    """The inverse of `_keys_and_values`."""
    (heads, _, plain_), _ = shapes
    rows = whole.reshape(heads, -1, whole.shape[-1])
    return rows[:, :plain_].swapaxes(1, 2), rows[:, plain_:]


def gguf_route(
    missing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    only_where: Callable[[Callable[[str], Any]], bool] | None = None,
) -> Gguf:
    """llama.cpp's deepseek2.

    The header's heads are those of attention over the short vectors themselves, for which every
    head reads one key; the `_mla` entries are the model's own. Older files have these alone.
    """

    def all_missing(given: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "num_key_value_heads": given["num_attention_heads"],
            "q_lora_rank": None,
            "qk_rope_head_dim": given["head_dim"],
            "qk_nope_head_dim": _difference(given["qk_head_dim"], given["head_dim"]),
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            **missing(given),
        }

    return Gguf(
        "deepseek2",
        entries={
            **mixture("n_routed_experts", "moe_intermediate_size"),
            "attention.head_count_kv": None,
            "attention.key_length": "qk_head_dim",
            "attention.key_length_mla": "qk_head_dim",
            "attention.value_length": "v_head_dim",
            "attention.value_length_mla": "v_head_dim",
            "attention.q_lora_rank": "q_lora_rank",
            "attention.kv_lora_rank": "kv_lora_rank",
            "rope.dimension_count": "head_dim",
            "leading_dense_block_count": "first_k_dense_replace",
            "expert_shared_count": "n_shared_experts",
            "expert_weights_scale": "routed_scaling_factor",
            "expert_weights_norm": "norm_topk_prob",
            "expert_gating_func": None,
            "expert_group_count": "n_group",
            "expert_group_used_count": "topk_group",
        },
        missing=all_missing,
        only_where=only_where,
        joined=(
            GATE_UP,
            Joined(
                *("attn_kv_b", ("attn_k_b", "attn_v_b"), _by_head),
                *(_keys_and_values, _keys_apart_from_values),
            ),
        ),
        unadapted=("layers/attn/(q|q_a|q_b|kv_a|kv_b)_proj/kernel", "head/kernel"),
    )


def _difference(whole: Any, part: Any) -> int | None:
    return whole - part if isinstance(whole, int) and isinstance(part, int) else None


_BY_SIGMOID = 2  # the header's number for it

DEEPSEEK_V3 = Family(
    architecture="DeepseekV3ForCausalLM",
    leaves={
        **LATENT_LEAVES,
        "layers/mlp/router_correction": buffer(f"{_MLP}.gate.e_score_correction_bias"),
    },
    parts=(
        *(SIZES, LatentHeads(), Activation(), Biases(), SharperRope(), GroupedExperts()),
        Same({"interleaved": "rope_interleave"}),
    ),
    features={},
    defaults={
        **DEFAULTS,
        "attention_bias": False,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 128,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_interleave": True,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
    },
    only={
        "scoring_func": ("sigmoid", None),
        "topk_method": ("noaux_tc", None),
        "moe_layer_freq": (1, None),
    },
    # the heads' width follows from its parts
    settings_aside=frozenset({"head_dim", "qk_head_dim", "ep_size", "num_nextn_predict_layers"}),
    layers_behind="num_nextn_predict_layers",
    gguf=gguf_route(
        lambda given: {"n_group": 1, "topk_group": 1},
        only_where=lambda entry: entry("expert_gating_func") == _BY_SIGMOID,
    ),
)
