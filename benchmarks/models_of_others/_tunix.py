"""Language models of Google's tunix, in Flax NNX."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

LENGTH, LAYERS = 7, 2
SIZES: dict[str, Any] = {
    **{"num_layers": LAYERS, "embed_dim": 24, "hidden_dim": 40},
    **{"num_heads": 3, "num_kv_heads": 1, "head_dim": 8},
}
QWEN: dict[str, Any] = {"vocab_size": 53, "rope_theta": 10_000, "norm_eps": 1e-6}


def _made(module: str, name: str, **settings: Any) -> tuple:
    models = importlib.import_module(f"tunix.models.{module}.model")
    for kinds in {"attention_types", "attention_pattern"} & settings.keys():
        settings[kinds] = tuple(models.AttentionType[kind] for kind in settings[kinds])
    config = models.ModelConfig(**{**SIZES, **settings})
    graph, params, rest = nnx.split(getattr(models, name)(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    tokens = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, 53)
    places = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    seen = jnp.broadcast_to(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), (2, LENGTH, LENGTH))

    def apply(params, tokens):
        return nnx.merge(graph, params, rest)(tokens, places, None, seen)[0]

    return apply, params, tokens


def llama3() -> tuple:
    """Llama 3."""
    return _made("llama3", "Llama3", **QWEN)


def qwen2() -> tuple:
    """Qwen 2."""
    return _made("qwen2", "Qwen2", **QWEN)


def qwen3() -> tuple:
    """Qwen 3."""
    return _made("qwen3", "Qwen3", **QWEN)


def qwen3_experts() -> tuple:
    """Qwen 3 with experts."""
    return _made("qwen3", "Qwen3", **QWEN, num_experts=4, num_experts_per_tok=2)


def gemma2() -> tuple:
    """Gemma 2."""
    return _made(
        "gemma",
        "Gemma",
        **{"num_embed": 53, "final_logit_softcap": 30.0, "attn_logits_soft_cap": 50.0},
        **{"use_post_attn_norm": True, "use_post_ffw_norm": True},
        **{"attention_types": ("LOCAL_SLIDING", "GLOBAL"), "sliding_window_size": 4},
    )


def gemma3() -> tuple:
    """Gemma 3."""
    return _made("gemma3", "Gemma3", num_embed=53, sliding_window_size=4, param_dtype=jnp.float32)


GEMMA4: dict[str, Any] = {
    **{"num_embed": 53, "sliding_window_size": 4, "global_key_size": 12},
    **{"attention_pattern": ("LOCAL_SLIDING", "GLOBAL")},
}


def gemma4() -> tuple:
    """Gemma 4, as its E2B: an input of each layer's own, keys and values of an earlier layer."""
    own = {"per_layer_input_dim": 5, "frac_shared_layers": 0.5, "override_kv_shared_ffw_hidden": 56}
    return _made("gemma4", "Gemma4", **GEMMA4, **own, num_layers=4)


def gemma4_experts() -> tuple:
    """Gemma 4 with experts, as its 26B: values that are the keys in global layers."""
    experts = {"enable_moe": True, "num_experts": 4, "num_experts_per_tok": 2, "expert_dim": 20}
    return _made(
        "gemma4",
        "Gemma4",
        **{**GEMMA4, **experts, "moe_dense_hidden_dim": 40},
        **{"k_eq_v_global": True, "num_global_kv_heads": 1},
    )


MODELS = {
    "Llama 3": llama3,
    "Qwen 2": qwen2,
    "Qwen 3": qwen3,
    "Qwen 3 with experts": qwen3_experts,
    "Gemma 2": gemma2,
    "Gemma 3": gemma3,
    "Gemma 4": gemma4,
    "Gemma 4 with experts": gemma4_experts,
}
