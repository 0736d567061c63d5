"""Qwen3-Next (Qwen team 2025): three of four layers by a gated delta rule, the fourth gated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import (
    GATE_UP,
    LESS_ONE,
    Gguf,
    Joined,
    Undo,
    rows_together,
)
from jlora.models._families._llama import DEFAULTS, HEAD_NORMS
from jlora.models._families._qwen2_moe import EXPERT_ENTRIES, QWEN2_MOE
from jlora.models._families._qwen3_moe import mlp_beside_experts
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Mixture, Settings
from jlora.models._families._window_settings import FULL, kinds_of
from jlora.models._files._torch_tensors import linear, plain
from jlora.models._net._config import DecoderConfig
from jlora.models._net._part_configs import DeltaRule

_LINEAR = "linear_attention"
_ATTENTION = "model.layers.{}.linear_attn"
_NAMES = {
    "key_heads": "linear_num_key_heads",
    "value_heads": "linear_num_value_heads",
    "key_dim": "linear_key_head_dim",
    "value_dim": "linear_value_head_dim",
    "taps": "linear_conv_kernel_dim",
}


@dataclasses.dataclass(frozen=True)
class _LinearLayers:
    """Which layers go by the delta rule: ``layer_types``, or all but every fourth."""

    def read(self, settings: Settings) -> dict[str, Any]:
        sizes = {field: settings.whole(name) for field, name in _NAMES.items()}
        layers = settings.get("num_hidden_layers", 0)
        every = settings.get("full_attention_interval", 4)
        its = kinds_of(settings, _LINEAR, layers, lambda at: (at + 1) % every != 0)
        if None in sizes.values() or not any(its):
            return {}
        return {"linear": DeltaRule(**sizes), "linear_layers": None if all(its) else tuple(its)}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        if (rule := config.linear) is None:
            return {"layer_types": [FULL] * config.layers}
        its = config.linear_layers or (True,) * config.layers
        return {
            "layer_types": [_LINEAR if each else FULL for each in its],
            **{name: getattr(rule, field) for field, name in _NAMES.items()},
        }


def _by_key_head(found: Sequence[np.ndarray], config: DecoderConfig) -> np.ndarray:
    """Rows that make queries, keys, values and gates, out of each by itself into turns."""
    mixed, gates = found
    if (rule := config.linear) is None:
        return np.concatenate(found)
    queries, keys, values = np.split(mixed, (rule.keys, 2 * rule.keys))
    heads = [each.reshape(rule.key_heads, -1, mixed.shape[-1]) for each in (queries, keys, values)]
    gates = gates.reshape(heads[-1].shape)
    return np.concatenate([*heads, gates], axis=1).reshape(-1, mixed.shape[-1])


def _sizes(rows: int, config: DecoderConfig) -> tuple[int, int]:
    gates = 0 if (rule := config.linear) is None else rule.value_heads * rule.value_dim
    return rows - gates, gates


def _by_kind(
    whole: np.ndarray, shapes: Sequence[tuple[int, ...]], config: DecoderConfig
) -> Sequence[np.ndarray]:
    """The inverse of `_by_key_head`."""
    if (rule := config.linear) is None:
        return np.split(whole, [shapes[0][0]])
    by_head = whole.reshape(rule.key_heads, -1, whole.shape[-1])
    values = (by_head.shape[1] - 2 * rule.key_dim) // 2
    ends = np.cumsum([rule.key_dim, rule.key_dim, values])
    *mixed, gates = (each.reshape(-1, whole.shape[-1]) for each in np.split(by_head, ends, axis=1))
    return np.concatenate(mixed), gates


def _logarithm(rates: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """What was written as the rates of decay, all below 0."""
    return np.log(-rates)


def _rates(logarithms: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """The inverse of `_logarithm`, to rounding."""
    return -np.exp(logarithms)


def _as_llama_cpp_takes_it(given: Mapping[str, Any]) -> Mapping[str, Any]:
    widths, heads = given["_value_widths"], given["linear_num_value_heads"]
    return {
        "full_attention_interval": 4,
        "linear_value_head_dim": widths // heads if widths and heads else None,
    }


QWEN3_NEXT = Family(
    architecture="Qwen3NextForCausalLM",
    leaves={
        **QWEN2_MOE.leaves,
        "layers/attn/o_proj/bias": plain("model.layers.{}.self_attn.o_proj.bias"),
        **HEAD_NORMS,
        **mlp_beside_experts("layers/mlp", "model.layers.{}.mlp"),
        **mlp_beside_experts("layers/mlp/shared", "model.layers.{}.mlp.shared_expert"),
        **{
            f"layers/linear_attn/{name}/kernel": linear(f"{_ATTENTION}.{name}.weight")
            for name in ("in_proj_qkvz", "in_proj_ba", "out_proj")
        },
        "layers/linear_attn/conv1d/filter": plain(f"{_ATTENTION}.conv1d.weight"),
        "layers/linear_attn/norm/scale": plain(f"{_ATTENTION}.norm.weight"),
        "layers/linear_attn/A_log": plain(f"{_ATTENTION}.A_log"),
        "layers/linear_attn/dt_bias": plain(f"{_ATTENTION}.dt_bias"),
    },
    parts=(
        *(SIZES, Heads(), Activation(), Biases(), _LinearLayers()),
        Rope(kinds=("linear", "llama3", "yarn", "dynamic"), partial=True, share=0.25),
        Mixture(shared="shared_expert_intermediate_size"),
    ),
    features={"norm": "rms_plus_one", "qk_norm": True, "gated_attention": True},
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "attention_bias": False,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "max_position_embeddings": 32768,
        "norm_topk_prob": True,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
    tensors_aside=("mtp.",),
    gguf=Gguf(
        "qwen3next",
        entries={
            **EXPERT_ENTRIES,
            "ssm.conv_kernel": "linear_conv_kernel_dim",
            "ssm.state_size": "linear_key_head_dim",
            "ssm.group_count": "linear_num_key_heads",
            "ssm.time_step_rank": "linear_num_value_heads",
            "ssm.inner_size": "_value_widths",  # of all heads together
            "full_attention_interval": "full_attention_interval",
        },
        missing=_as_llama_cpp_takes_it,
        undo={
            "(?!.*linear_attn).*norm/scale": LESS_ONE,
            "layers/linear_attn/A_log": Undo(_logarithm, _rates),
        },
        joined=(
            GATE_UP,
            Joined(
                *("ssm_in", ("attn_qkv", "attn_gate"), rows_together),
                *(_by_key_head, _by_kind, _sizes),
            ),
        ),
        names={
            "layers/linear_attn/A_log": "blk.{}.ssm_a",
            "layers/linear_attn/dt_bias": "blk.{}.ssm_dt.bias",
        },
        squeezed={"layers/linear_attn/conv1d/filter": 1},
    ),
)
