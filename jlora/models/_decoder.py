"""The decoder in Flax linen: init and apply are pure functions over a plain tree of parameters.

Layers are stacked along a first dimension and scanned, so that a deep model compiles as fast as a
shallow one.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._config import DecoderConfig, RopeScaling

Cache = tuple[jax.Array, jax.Array]  # keys and values: (layers, batch, slots, kv_heads, head_dim)


def rotary_frequencies(config: DecoderConfig) -> jax.Array:
    """Radians a position for each pair of a head's dimensions: (head_dim / 2,), float32."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = _stretched(frequencies, config.rope_scaling)
    return frequencies


def _stretched(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Slow frequencies divided by the factor, fast ones as they are, a ramp between."""
    turns = scaling.original_max_position * frequencies / (2 * math.pi)
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = jnp.clip(ramp, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) of (batch, length, heads, head_dim)."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale.astype(jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    """Causal attention with grouped key-value heads; keys and values are never repeated."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, rotary, mask, cache, slot):
        config = self.config
        batch, length, _ = x.shape
        groups = config.heads // config.kv_heads

        def project(name, heads):
            features = heads * config.head_dim
            out = nn.Dense(features, use_bias=False, name=name)(x)
            return out.reshape(batch, length, heads, config.head_dim)

        query = rotate(project("q_proj", config.heads), *rotary)
        key = rotate(project("k_proj", config.kv_heads), *rotary)
        value = project("v_proj", config.kv_heads)
        if cache is not None:
            key = jax.lax.dynamic_update_slice(cache[0], key, (0, slot, 0, 0))
            value = jax.lax.dynamic_update_slice(cache[1], value, (0, slot, 0, 0))
            cache = key, value
        query = query.reshape(batch, length, config.kv_heads, groups, config.head_dim)
        scores = jnp.einsum("btkgd,bskd->bkgts", query, key) * config.head_dim**-0.5
        scores = jnp.where(mask[:, None, None], scores.astype(jnp.float32), -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bkgts,bskd->btkgd", weights, value)
        mixed = mixed.reshape(batch, length, config.heads * config.head_dim)
        return nn.Dense(config.width, use_bias=False, name="o_proj")(mixed), cache


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nn.Dense(self.config.mlp_width, use_bias=False, name="gate_proj")(x)
        up = nn.Dense(self.config.mlp_width, use_bias=False, name="up_proj")(x)
        return nn.Dense(self.config.width, use_bias=False, name="down_proj")(jax.nn.silu(gate) * up)


class Block(nn.Module):
    """One layer: attention and MLP, each on its normed input and added to it."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, rotary, mask, cache, slot):
        normed = RMSNorm(self.config.norm_epsilon, name="attn_norm")(x)
        mixed, cache = Attention(self.config, name="attn")(normed, rotary, mask, cache, slot)
        x = x + mixed
        normed = RMSNorm(self.config.norm_epsilon, name="mlp_norm")(x)
        return x + GatedMLP(self.config, name="mlp")(normed), cache


class Decoder(nn.Module):
    """A decoder-only transformer; parameters as ``{"embed", "layers", "norm"[, "head"]}``."""

    config: DecoderConfig
    remat: bool = False

    def setup(self):
        config = self.config
        # prevent_cse: a scan already keeps the two passes apart
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        self.embed = nn.Embed(config.vocabulary, config.width)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0, nn.broadcast),  # pyright: ignore
            length=config.layers,
        )(config)
        self.norm = RMSNorm(config.norm_epsilon)
        if not config.tied:
            self.head = nn.Dense(config.vocabulary, use_bias=False)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.logits(self.hidden(tokens))

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """The last layer's normed output, (batch, length, width), for tokens from position 0 on."""
        length = tokens.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))[None]
        return self._run(tokens, jnp.arange(length)[None], causal, None, None)[0]

    def extend(self, tokens, positions, mask, cache: Cache, slot) -> tuple[jax.Array, Cache]:
        """As `hidden`, after the keys and values in ``cache``; those of ``tokens`` go to ``slot``.

        Args:
            tokens: (batch, length) int32.
            positions: (batch, length) int32, each token's place in its own row.
            mask: (batch, length, slots) bool, which slots a token sees.
            cache: from `empty_cache` or an earlier call.
            slot: int32 scalar, the first of ``length`` slots, the same for all rows.
        """
        return self._run(tokens, positions, mask, cache, slot)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores over the vocabulary, float32."""
        out = self.embed.attend(hidden) if self.config.tied else self.head(hidden)
        return out.astype(jnp.float32)

    def _run(self, tokens, positions, mask, cache, slot) -> tuple[jax.Array, Any]:
        x = self.embed(tokens)
        angles = positions[..., None].astype(jnp.float32) * rotary_frequencies(self.config)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        rotary = tuple(part[:, :, None].astype(x.dtype) for part in (cos, sin))
        x, cache = self.layers(x, rotary, mask, cache, slot)
        return self.norm(x), cache


def empty_cache(config: DecoderConfig, batch: int, slots: int, dtype: Any) -> Cache:
    """Room for the keys and values of so many slots in each row."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_dim)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
