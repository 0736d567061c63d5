"""Language models of DeepMind's gemma, in Flax linen."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

SIZES: dict[str, Any] = {
    **{"num_embed": 53, "embed_dim": 24, "hidden_dim": 40, "num_heads": 3, "head_dim": 8},
    "sliding_window_size": 4,
}


def _made(model: Any) -> tuple:
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 3, 53)
    params = _noisy(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    return lambda params, tokens: model.apply({"params": params}, tokens).logits, params, tokens


def _noisy(params: Any) -> Any:
    """The parameters with noise for those that start at zero, which would make all of 3n zero."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return structure.unflatten(
        jnp.where((leaf == 0).all(), 0.3 * jax.random.normal(key, leaf.shape), leaf)
        for key, leaf in zip(keys, leaves, strict=True)
    )


def gemma3() -> tuple:
    """Gemma 3, as its 1B is but small."""
    from gemma import gm

    published = gm.nn.Gemma3_1B.config
    config = dataclasses.replace(published, **SIZES, attention_types=published.attention_types[4:6])
    return _made(gm.nn.Transformer(config=config, dtype=jnp.float32))


def gemma3n() -> tuple:
    """Gemma 3n, as its E2B is but small: the last two layers use keys and values of others."""
    from gemma import gm

    published = gm.nn.Gemma3n_E2B.config
    sharing = dataclasses.replace(published.kv_cache_sharing_config, frac_shared_layers=0.5)
    config = dataclasses.replace(
        published,
        **{**SIZES, "num_heads": 4, "kv_cache_sharing_config": sharing},
        **{"attention_types": published.attention_types[3:5] * 2, "vision_encoder": None},
        **{"activation_sparsity_pattern": (0.95, 0.0) * 2},
        **{"per_layer_input_dim": 5, "laurel_rank": 3},
    )
    return _made(gm.nn.Gemma3n_E2B(config=config, dtype=jnp.float32))


def gemma4() -> tuple:
    """Gemma 4, as its E2B is but small: the last two layers use keys and values of others."""
    from gemma import gm

    published = gm.nn.Gemma4_E2B.config
    sharing = dataclasses.replace(published.kv_cache_sharing_config, frac_shared_layers=0.5)
    config = dataclasses.replace(
        published,
        **{**SIZES, "global_key_size": 12, "kv_cache_sharing_config": sharing},
        **{"attention_types": published.attention_types[3:5] * 2, "per_layer_input_dim": 5},
        **{"override_kv_shared_ffw_hidden": 56},
    )
    return _made(gm.nn.Gemma4_E2B(config=config, dtype=jnp.float32))


def gemma4_experts() -> tuple:
    """Gemma 4 with experts, as its 26B is but small."""
    from gemma import gm

    published = gm.nn.Gemma4_26B_A4B.config
    config = dataclasses.replace(
        published,
        **{**SIZES, "num_kv_heads": 1, "num_global_kv_heads": 1, "global_key_size": 12},
        **{"attention_types": published.attention_types[4:6], "moe_dense_hidden_dim": 40},
        **{"num_experts": 4, "expert_dim": 20, "top_k_experts": 2},
    )
    return _made(gm.nn.Gemma4_26B_A4B(config=config, dtype=jnp.float32))


MODELS = {
    "Gemma 3": gemma3,
    "Gemma 3n": gemma3n,
    "Gemma 4": gemma4,
    "Gemma 4 with experts": gemma4_experts,
}
