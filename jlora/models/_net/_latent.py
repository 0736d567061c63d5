"""Queries, keys and values out of short vectors, and one rotated key for all heads.

"DeepSeek-V2" (DeepSeek-AI 2024, arXiv 2405.04434), section 2.1: multi-head latent attention.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._norms import Norm
from jlora.models._net._part_configs import Latent
from jlora.models._net._remat import product

_EPSILON = 1e-6  # of the short vectors' norms, whatever that of the others is


def queries_keys_values(
    config: DecoderConfig, latent: Latent, x: jax.Array, turn: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each (batch, length, heads, its dimensions), queries and keys rotated.

    To be called where a module makes its submodules.

    Args:
        config: of the decoder.
        latent: its own sizes.
        x: (batch, length, width), the layer's input.
        turn: rotates (batch, length, any heads, rotated).
    """

    def dense(name: str, features: int, x: jax.Array, bias: bool = False) -> jax.Array:
        return product(nn.Dense(features, use_bias=bias, name=f"{name}_proj")(x))

    def by_head(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], config.heads, -1)

    all_queries = config.heads * config.head_dim
    if latent.query_width is None:
        query = dense("q", all_queries, x)
    else:
        short = dense("q_a", latent.query_width, x, config.qkv_bias)
        query = dense("q_b", all_queries, Norm(_EPSILON, name="q_a_norm")(short))
    query = by_head(query)
    query = jnp.concatenate([query[..., : latent.plain], turn(query[..., latent.plain :])], axis=-1)
    both = dense("kv_a", latent.width + latent.rotated, x, config.qkv_bias)
    short, rotated = both[..., : latent.width], both[..., latent.width :]
    long = config.heads * (latent.plain + latent.value)
    long = by_head(dense("kv_b", long, Norm(_EPSILON, name="kv_a_norm")(short)))
    key, value = long[..., : latent.plain], long[..., latent.plain :]
    shared = jnp.broadcast_to(turn(rotated[:, :, None]), (*key.shape[:-1], latent.rotated))
    return query, jnp.concatenate([key, shared], axis=-1), value
