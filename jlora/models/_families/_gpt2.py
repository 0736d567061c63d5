"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, kernels stored as (in, out)."""

from __future__ import annotations

import dataclasses
from typing import Any

from jlora.models._families._family import Family
from jlora.models._families._gguf_route import Gguf, layer_norm
from jlora.models._families._settings import Activation, Same, Settings
from jlora.models._files._torch_tensors import conv1d, linear, plain
from jlora.models._net._config import DecoderConfig

_BLOCK = "transformer.h.{}"
_MODULES = {
    "attn/qkv_proj": "attn.c_attn",
    "attn/o_proj": "attn.c_proj",
    "mlp/up_proj": "mlp.c_fc",
    "mlp/down_proj": "mlp.c_proj",
}
_NORMS = {
    "layers/attn_norm": f"{_BLOCK}.ln_1",
    "layers/mlp_norm": f"{_BLOCK}.ln_2",
    "norm": "transformer.ln_f",
}


@dataclasses.dataclass(frozen=True)
class _Widths:
    """Heads share the width; the MLP is four times as wide unless n_inner says otherwise."""

    def read(self, settings: Settings) -> dict[str, Any]:
        heads, width = settings.number("n_head"), settings.number("n_embd")
        inner = settings.number("n_inner", needed=False)
        if not heads or not width:
            return {}
        if width % heads:
            settings.problems.append(f"n_embd is {width}: expected a multiple of n_head, {heads}")
        sizes = {"heads": heads, "kv_heads": heads, "head_dim": width // heads, "width": width}
        return {**sizes, "mlp_width": inner or 4 * width}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {"n_head": config.heads, "n_embd": config.width, "n_inner": config.mlp_width}


@dataclasses.dataclass(frozen=True)
class _ScoreScale:
    """Scores are divided by the root of the head's width, or not at all."""

    def read(self, settings: Settings) -> dict[str, Any]:
        return {"query_scalar": None if settings.get("scale_attn_weights", False) else 1}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {"scale_attn_weights": config.query_scalar is None}


GPT2 = Family(
    architecture="GPT2LMHeadModel",
    leaves={
        "embed/embedding": plain("transformer.wte.weight"),
        "positions/embedding": plain("transformer.wpe.weight"),
        **{
            f"layers/{ours}/kernel": conv1d(f"{_BLOCK}.{theirs}.weight")
            for ours, theirs in _MODULES.items()
        },
        **{
            f"layers/{ours}/bias": plain(f"{_BLOCK}.{theirs}.bias")
            for ours, theirs in _MODULES.items()
        },
        **{f"{ours}/scale": plain(f"{theirs}.weight") for ours, theirs in _NORMS.items()},
        **{f"{ours}/bias": plain(f"{theirs}.bias") for ours, theirs in _NORMS.items()},
        "head/kernel": linear("lm_head.weight"),
    },
    parts=(
        _Widths(),
        Same(
            {
                "vocabulary": "vocab_size",
                "layers": "n_layer",
                "max_length": "n_positions",
                "norm_epsilon": "layer_norm_epsilon",
                "tied": "tie_word_embeddings",
            }
        ),
        Activation("activation_function", tanh="gelu_new"),
        _ScoreScale(),
    ),
    features={
        "norm": "layer",
        "gated": False,
        "fused_qkv": True,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "learned_positions": True,
    },
    defaults={
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
    },
    only={
        "scale_attn_by_inverse_layer_idx": (False, None),
        "add_cross_attention": (False, None),
    },
    settings_aside=frozenset(
        # of a head for classification, which is none of the decoder's
        {"n_ctx", "summary_type", "summary_use_proj", "summary_activation"}
        | {"summary_proj_to_labels", "summary_first_dropout"}
    ),
    gguf=Gguf(
        "gpt2",
        entries={
            **layer_norm("layer_norm_epsilon"),
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            # all of them follow from these
            **dict.fromkeys(("attention.head_count_kv", "attention.key_length", "rope.freq_base")),
        },
    ),
)
