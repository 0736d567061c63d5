"""Gemma 2 (arXiv 2408.00118): caps, norms before and after, every other layer with a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import ONE_ADDED, WINDOWS, Gguf
from jlora.models._families._llama import ATTENTION_BIASES, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Same
from jlora.models._families._window_settings import LayerWindows
from jlora.models._files._torch_tensors import plain

GEMMA_LEAVES = {
    **LEAVES,
    **ATTENTION_BIASES,
    "layers/attn_post_norm/scale": plain("model.layers.{}.post_attention_layernorm.weight"),
    "layers/mlp_norm/scale": plain("model.layers.{}.pre_feedforward_layernorm.weight"),
    "layers/mlp_post_norm/scale": plain("model.layers.{}.post_feedforward_layernorm.weight"),
}
GEMMA_FEATURES = {"norm": "rms_plus_one", "post_norms": True, "scaled_embedding": True}
GEMMA_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA_PARTS = (
    *(SIZES, Heads(), Activation("hidden_activation"), Biases()),
    Same({"query_scalar": "query_pre_attn_scalar"}),
)


def scalar_by_layers(given: Mapping[str, Any], largest: int) -> dict[str, int | None]:
    """What llama.cpp divides scores by the root of: the largest model's is no head's width."""
    width, heads, head_dim = (
        given.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim")
    )
    if given.get("num_hidden_layers") == largest and width and heads:
        return {"query_pre_attn_scalar": width // heads}
    return {"query_pre_attn_scalar": head_dim}


_CAPS = {"attention_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}

GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    leaves=GEMMA_LEAVES,
    parts=(*GEMMA_PARTS, Rope(), LayerWindows(every=2), Same(_CAPS, needed=False)),
    features=GEMMA_FEATURES,
    defaults={
        **GEMMA_DEFAULTS,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    only={"use_bidirectional_attention": (False, None)},
    settings_aside=frozenset({"hidden_act"}),  # hidden_activation is read in its place
    gguf=Gguf(
        "gemma2",
        entries={
            **WINDOWS,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        missing=lambda given: {
            **scalar_by_layers(given, 46),
            "sliding_window": 4096,
            "layer_types": None,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        undo=ONE_ADDED,
    ),
)
