"""Causal attention with grouped key-value heads."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net import _fused_attention
from jlora.models._net._borrowing import BORROWED, LENT, OWN, Keys
from jlora.models._net._config import DecoderConfig
from jlora.models._net._laid_out import MODEL, ROWS, laid_out, rows_laid_out
from jlora.models._net._latent import queries_keys_values
from jlora.models._net._layer_differences import Layer
from jlora.models._net._norms import by_root_mean_square, norm
from jlora.models._net._remat import product
from jlora.models._net._rotary import rotate


def _block_size(length: int) -> int:
    """Tokens in a block: eight blocks, of 64 tokens at least."""
    return max(64, -(-length // 8))


def capped(scores: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(scores / cap): scores that stay below the cap (Gemma 2, arXiv 2408.00118)."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def shares_beside(scores: jax.Array, sink: jax.Array) -> jax.Array:
    """The softmax of scores with one more, of which nothing is read (Xiao et al., 2309.17453)."""
    total = jnp.logaddexp(jax.nn.logsumexp(scores, axis=-1, keepdims=True), sink)
    return jnp.exp(scores - total)


class Attention(nn.Module):
    """Causal attention with grouped key-value heads; keys and values are never repeated.

    Without a cache, queries go by blocks, and no block meets the keys that come after it: for long
    texts half the FLOPs, and half the scores in memory. ``attention`` names another way for
    those: an implementation of `jax.nn.dot_product_attention`.
    """

    config: DecoderConfig
    attention: str = "blocks"
    keys: Keys = OWN

    @nn.compact
    def __call__(self, x, layer, cache, slot):
        config, mask, gate = self.config, layer.mask, None
        turn = functools.partial(rotate, rotary=layer.rotary, interleaved=config.interleaved)
        if config.latent is not None:
            query, key, value = queries_keys_values(config, config.latent, x, turn)
        else:
            query, *own = self._project(x)
            if config.gated_attention:
                query, gate = query[:, :, ::2], query[:, :, 1::2]
            query, *turned = self._turned([query, *own[:1]], layer, turn)
            key, value = layer.lent if self.keys == BORROWED else (*turned, own[1])
            if config.value_rms and self.keys != BORROWED:
                value = by_root_mean_square(value, config.norm_epsilon).astype(value.dtype)
        query, key, value = (laid_out(x, ROWS, None, MODEL, None) for x in (query, key, value))
        if layer.sharper is not None:
            query = (query * layer.sharper).astype(query.dtype)
        if cache is not None and self.keys != BORROWED:
            key = jax.lax.dynamic_update_slice(cache[0], key, (0, slot, 0, 0))
            value = jax.lax.dynamic_update_slice(cache[1], value, (0, slot, 0, 0))
            cache = key, value
        sinks = None
        if config.sinks:
            sinks = self.param("sinks", nn.initializers.zeros_init(), (config.heads,))
        if self.attention != "blocks" and cache is None:
            mixed = _fused_attention.attend(query, key, value, config, self.attention)
        else:
            mixed = self._in_blocks(query, key, value, mask, cache is not None, sinks)
        mixed = mixed.reshape(*x.shape[:2], config.heads * config.value_dim)
        if gate is not None:
            mixed = mixed * jax.nn.sigmoid(gate.reshape(mixed.shape))
        out = nn.Dense(config.width, use_bias=config.o_bias, name="o_proj")(mixed)
        return rows_laid_out(product(out)), (key, value) if self.keys == LENT else cache

    def _turned(self, queries_and_keys: list[jax.Array], layer: Layer, turn) -> list[jax.Array]:
        """Queries, and keys where the layer has its own, normed and rotated."""
        config, both = self.config, dict(zip(("q_norm", "k_norm"), queries_and_keys, strict=False))
        if config.qk_norm and not config.qk_norm_after:
            both = {name: self._normed(name, x) for name, x in both.items()}
        both = {name: turn(x) for name, x in both.items()}
        if config.qk_norm and config.qk_norm_after:
            both = {name: self._normed(name, x) for name, x in both.items()}
        if config.qk_rms and layer.rotary is not None:
            both = {name: self._divided(x, layer.turns) for name, x in both.items()}
        return list(both.values())

    def _in_blocks(self, query, key, value, mask, cached: bool, sinks) -> jax.Array:
        """What queries gather from the values: (batch, length, kv_heads, groups, value_dim)."""
        config = self.config
        batch, length = query.shape[:2]
        groups = config.heads // config.kv_heads
        # The small arrays are transposed here, so that XLA transposes no scores.
        query = query.reshape(batch, length, config.kv_heads, groups, config.head_dim)
        query = query.transpose(0, 2, 3, 1, 4)  # (batch, kv_heads, groups, length, head_dim)
        key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
        size = max(1, length) if cached else _block_size(length)
        blocks = []
        for start in range(0, max(1, length), size):
            end = min(start + size, length)
            seen = key.shape[2] if cached else end
            rows = query[:, :, :, start:end]
            keys, values = key[:, :, :seen], value[:, :, :seen]
            blocks.append(self._mixed(rows, keys, values, mask[:, start:end, :seen], sinks))
        return jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4)

    def _mixed(self, query, key, value, mask, sinks) -> jax.Array:
        """What queries of (batch, kv_heads, groups, block, head_dim) gather from the values."""
        config = self.config
        # A group's heads stand beside its tokens: one product a key-value head.
        rows = query.reshape(*query.shape[:2], math.prod(query.shape[2:4]), config.head_dim)
        scores = jnp.einsum("bktd,bksd->bkts", rows, key) * config.score_scale
        scores = capped(scores.astype(jnp.float32), config.attention_cap)
        mask = jnp.tile(mask, (1, query.shape[2], 1))[:, None]
        scores = jnp.where(mask, scores, -1e30)
        if sinks is None:
            weights = jax.nn.softmax(scores, axis=-1)
        else:  # each row of a head has the head's own
            its = jnp.repeat(sinks.astype(jnp.float32).reshape(config.kv_heads, -1), query.shape[3])
            weights = shares_beside(scores, its.reshape(config.kv_heads, -1, 1))
        weights = weights.astype(query.dtype)
        gathered = jnp.einsum("bkts,bksd->bktd", weights, value)
        return gathered.reshape(*query.shape[:-1], value.shape[-1])

    def _normed(self, name: str, x: jax.Array) -> jax.Array:
        """Each head of (batch, length, heads, head_dim) normed, or all of them at once."""
        if not self.config.qk_norm_joint:
            return norm(self.config, name)(x)
        return norm(self.config, name)(x.reshape(*x.shape[:2], -1)).reshape(x.shape)

    def _divided(self, x: jax.Array, turns: jax.Array | None) -> jax.Array:
        """Each head divided by its root mean square, where the layer is rotated."""
        divided = by_root_mean_square(x, self.config.norm_epsilon).astype(x.dtype)
        return divided if turns is None else jnp.where(turns, divided, x)

    def _project(self, x: jax.Array) -> list[jax.Array]:
        """Queries, keys and values, each (batch, length, its heads, head_dim).

        Queries alone where keys and values are borrowed.
        """
        config = self.config
        queries = 2 * config.heads if config.gated_attention else config.heads
        counts = {"q": queries, "k": config.kv_heads, "v": config.kv_heads}
        counts = {"q": queries} if self.keys == BORROWED else counts

        def project(name: str, heads: int) -> jax.Array:
            features = heads * config.head_dim
            out = nn.Dense(features, use_bias=config.qkv_bias, name=f"{name}_proj")(x)
            return product(out).reshape(*x.shape[:2], heads, config.head_dim)

        if config.fused_qkv:
            ends = (config.heads, config.heads + config.kv_heads)
            return jnp.split(project("qkv", sum(counts.values())), ends, axis=2)
        return [project(name, heads) for name, heads in counts.items()]
