"""Which architectures are read, and what the files call their parts: a table for each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jlora.models._config import DecoderConfig

# path -> (name in Hugging Face files, name in GGUF files); {} is the layer.
Names = Mapping[str, tuple[str, str]]

_LLAMA: Names = {
    "embed/embedding": ("model.embed_tokens.weight", "token_embd.weight"),
    "layers/attn_norm/scale": (
        "model.layers.{}.input_layernorm.weight",
        "blk.{}.attn_norm.weight",
    ),
    "layers/attn/q_proj/kernel": (
        "model.layers.{}.self_attn.q_proj.weight",
        "blk.{}.attn_q.weight",
    ),
    "layers/attn/k_proj/kernel": (
        "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_k.weight",
    ),
    "layers/attn/v_proj/kernel": (
        "model.layers.{}.self_attn.v_proj.weight",
        "blk.{}.attn_v.weight",
    ),
    "layers/attn/o_proj/kernel": (
        "model.layers.{}.self_attn.o_proj.weight",
        "blk.{}.attn_output.weight",
    ),
    "layers/mlp_norm/scale": (
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.ffn_norm.weight",
    ),
    "layers/mlp/gate_proj/kernel": (
        "model.layers.{}.mlp.gate_proj.weight",
        "blk.{}.ffn_gate.weight",
    ),
    "layers/mlp/up_proj/kernel": ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    "layers/mlp/down_proj/kernel": (
        "model.layers.{}.mlp.down_proj.weight",
        "blk.{}.ffn_down.weight",
    ),
    "norm/scale": ("model.norm.weight", "output_norm.weight"),
    "head/kernel": ("lm_head.weight", "output.weight"),
}
