"""Language models of DeepMind's gemma, in Flax linen."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


def gemma3() -> tuple:
    """Gemma 3, as its 1B is but small."""
    from gemma import gm

    published = gm.nn.Gemma3_1B.config
    config = dataclasses.replace(
        published,
        **{"num_embed": 53, "embed_dim": 24, "hidden_dim": 40, "num_heads": 3, "head_dim": 8},
        **{"attention_types": published.attention_types[4:6], "sliding_window_size": 4},
    )
    model = gm.nn.Transformer(config=config, dtype=jnp.float32)
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 3, 53)
    params = model.init(jax.random.key(0), tokens)["params"]
    return lambda params, tokens: model.apply({"params": params}, tokens).logits, params, tokens


MODELS = {"Gemma 3": gemma3}
