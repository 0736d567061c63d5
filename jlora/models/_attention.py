"""Causal attention with grouped key-value heads."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._config import DecoderConfig
from jlora.models._kept import product
from jlora.models._norms import norm
from jlora.models._rotary import rotate


def capped(scores: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(scores / cap): scores that stay below the cap (Gemma 2, arXiv 2408.00118)."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


class Attention(nn.Module):
    """Causal attention with grouped key-value heads; keys and values are never repeated."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, rotary, mask, cache, slot):
        config = self.config
        batch, length, _ = x.shape
        groups = config.heads // config.kv_heads
        query, key, value = self._project(x)
        if config.qk_norm:
            query, key = norm(config, "q_norm")(query), norm(config, "k_norm")(key)
        query, key = rotate(query, rotary), rotate(key, rotary)
        if cache is not None:
            key = jax.lax.dynamic_update_slice(cache[0], key, (0, slot, 0, 0))
            value = jax.lax.dynamic_update_slice(cache[1], value, (0, slot, 0, 0))
            cache = key, value
        query = query.reshape(batch, length, config.kv_heads, groups, config.head_dim)
        scale = (config.query_scalar or config.head_dim) ** -0.5
        scores = jnp.einsum("btkgd,bskd->bkgts", query, key) * scale
        scores = capped(scores.astype(jnp.float32), config.attention_cap)
        scores = jnp.where(mask[:, None, None], scores, -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bkgts,bskd->btkgd", weights, value)
        mixed = mixed.reshape(batch, length, config.heads * config.head_dim)
        out = nn.Dense(config.width, use_bias=config.o_bias, name="o_proj")(mixed)
        return product(out), cache

    def _project(self, x: jax.Array) -> list[jax.Array]:
        """Queries, keys and values, each (batch, length, its heads, head_dim)."""
        config = self.config
        counts = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}

        def project(name: str, heads: int) -> jax.Array:
            features = heads * config.head_dim
            out = nn.Dense(features, use_bias=config.qkv_bias, name=f"{name}_proj")(x)
            return product(out).reshape(*x.shape[:2], heads, config.head_dim)

        if config.fused:
            ends = (config.heads, config.heads + config.kv_heads)
            return jnp.split(project("qkv", sum(counts.values())), ends, axis=2)
        return [project(name, heads) for name, heads in counts.items()]
