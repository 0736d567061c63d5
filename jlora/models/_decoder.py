"""The decoder: a stack of pre-normalised attention and gated-MLP blocks, run as one scan.

Parameters, with kernels as (in, out) and the layers' ones stacked in front:

    embed/embedding               (vocabulary, width)
    layers/attn_norm/scale        (layers, width)
    layers/attn/q_proj/kernel     (layers, width, heads * head_dim); k_proj, v_proj: kv_heads
    layers/attn/o_proj/kernel     (layers, heads * head_dim, width)
    layers/mlp_norm/scale         (layers, width)
    layers/mlp/gate_proj/kernel   (layers, width, ffn); up_proj alike
    layers/mlp/down_proj/kernel   (layers, ffn, width)
    norm/scale                    (width,)
    head/kernel                   (width, vocabulary), unless the embedding is the head

Products run in the dtype of their kernel; norms, softmax and logits in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jlora.models._config import DecoderConfig

HIDDEN = -1e30  # a score that softmax turns into 0; not -inf, or rows of padding would be NaN


class Cache(NamedTuple):
    """Keys and values of the tokens read so far; every row writes to the same slot."""

    keys: jax.Array  # (layers, batch, kv_heads, slots, head_dim)
    values: jax.Array  # (layers, batch, kv_heads, slots, head_dim)
    slot: jax.Array | int  # the first free one
    layer: jax.Array | int = 0  # which layer reads and writes next

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, slots: int, dtype: Any) -> Cache:
        shape = (config.layers, batch, config.kv_heads, slots, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), 0)

    def grown(self, slots: int) -> Cache:
        """The cache with so many slots more."""
        more = [(0, 0)] * 3 + [(0, slots), (0, 0)]
        return self._replace(keys=jnp.pad(self.keys, more), values=jnp.pad(self.values, more))

    def exchange(self, keys: jax.Array, values: jax.Array) -> tuple[Cache, jax.Array, jax.Array]:
        """The cache with one layer's new keys and values, and all that this layer has of each."""
        at = (self.layer, 0, 0, self.slot, 0)
        cache = self._replace(
            keys=lax.dynamic_update_slice(self.keys, keys[None].astype(self.keys.dtype), at),
            values=lax.dynamic_update_slice(self.values, values[None].astype(self.keys.dtype), at),
            layer=self.layer + 1,
        )
        return (
            cache,
            lax.dynamic_index_in_dim(cache.keys, self.layer, keepdims=False),
            lax.dynamic_index_in_dim(cache.values, self.layer, keepdims=False),
        )


class Linear(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return x.astype(kernel.dtype) @ kernel


class Norm(nn.Module):
    """x / sqrt(mean(x²) + eps) * scale (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        wide = x.astype(jnp.float32)
        wide *= lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale.astype(jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    config: DecoderConfig

    @nn.compact
    def __call__(self, x, rope, bias, cache: Cache | None):
        config = self.config
        groups = config.heads // config.kv_heads

        def heads(name: str, count: int):
            projected = Linear(count * config.head_dim, name=name)(x)
            return projected.reshape(*x.shape[:2], count, config.head_dim)

        queries = rotate(heads("q_proj", config.heads), rope) * config.head_dim**-0.5
        queries = queries.reshape(*x.shape[:2], config.kv_heads, groups, config.head_dim)
        keys = rotate(heads("k_proj", config.kv_heads), rope).swapaxes(1, 2)
        values = heads("v_proj", config.kv_heads).swapaxes(1, 2)
        if cache is not None:
            cache, keys, values = cache.exchange(keys, values)
        scores = jnp.einsum(
            "btkgd,bksd->bkgts", queries, keys, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(scores + bias, axis=-1).astype(values.dtype)
        mixed = jnp.einsum("bkgts,bksd->btkgd", weights, values)
        return Linear(x.shape[-1], name="o_proj")(mixed.reshape(*x.shape[:2], -1)), cache


class MLP(nn.Module):
    """(silu(x G) * (x U)) D (Shazeer 2020, arXiv 2002.05202)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x):
        gate = Linear(self.config.ffn, name="gate_proj")(x)
        up = Linear(self.config.ffn, name="up_proj")(x)
        return Linear(x.shape[-1], name="down_proj")(nn.silu(gate) * up)


class Block(nn.Module):
    config: DecoderConfig

    @nn.compact
    def __call__(self, carry, rope, bias):
        x, cache = carry
        eps = self.config.norm_eps
        mixed, cache = Attention(self.config, name="attn")(
            Norm(eps, name="attn_norm")(x), rope, bias, cache
        )
        x += mixed
        x += MLP(self.config, name="mlp")(Norm(eps, name="mlp_norm")(x))
        return (x, cache), None


class Decoder(nn.Module):
    """Tokens to hidden states, and hidden states to logits."""

    config: DecoderConfig
    remat: bool = False

    def setup(self):
        config = self.config
        self.embed = nn.Embed(config.vocabulary, config.width)
        # The scan already keeps the compiler from undoing rematerialisation.
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.layers,
        )(config)
        self.norm = Norm(config.norm_eps)
        if not config.tied:
            self.head = Linear(config.vocabulary)

    def __call__(self, tokens):
        """Logits of (batch, length) tokens; touches every parameter, for `init`."""
        return self.logits(self.hidden(tokens))

    def hidden(self, tokens):
        """Normalised states (batch, length, width) of sequences that start at position 0."""
        positions = jnp.arange(tokens.shape[1])
        bias = visible(positions[None, :] <= positions[:, None])  # (length, length)
        states, _ = self._run(tokens, positions[None], bias, None)
        return states

    def read(self, tokens, cache: Cache, padding):
        """The last state (batch, width) after reading tokens into the cache, and the cache.

        Slot s of a row is its position s - padding; slots below its padding hold nothing.
        """
        slots = cache.slot + jnp.arange(tokens.shape[1])  # of the tokens
        columns = jnp.arange(cache.keys.shape[3])  # all slots
        seen = (columns[None, None] <= slots[None, :, None]) & (
            columns[None, None] >= padding[:, None, None]
        )  # (batch, length, slots)
        positions = jnp.maximum(slots[None] - padding[:, None], 0)
        bias = visible(seen)[:, None, None]
        states, cache = self._run(tokens, positions, bias, cache)
        return states[:, -1], cache._replace(slot=cache.slot + tokens.shape[1], layer=0)

    def logits(self, hidden):
        """Scores (..., vocabulary) in float32."""
        if self.config.tied:
            kernel, spec = self.embed.embedding, "...d,vd->...v"
        else:
            return self.head(hidden).astype(jnp.float32)
        hidden = hidden.astype(kernel.dtype)
        return jnp.einsum(spec, hidden, kernel, preferred_element_type=jnp.float32)

    def _run(self, tokens, positions, bias, cache):
        rope = rotations(self.config, positions)
        (x, cache), _ = self.layers((self.embed(tokens), cache), rope, bias)
        return self.norm(x), cache


def visible(seen):
    """What is added to the scores, float32: 0 where a token sees another, else HIDDEN."""
    return jnp.where(seen, 0.0, HIDDEN).astype(jnp.float32)


def rotations(config: DecoderConfig, positions):
    """cos and sin (batch or 1, length, 1, head_dim / 2) of rotary positions, float32.

    Su et al. 2021, arXiv 2104.09864.
    """
    half = config.head_dim // 2
    frequencies = config.rope_base ** -(jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_factors:
        frequencies /= jnp.asarray(config.rope_factors, jnp.float32)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, rope):
    """Each pair (x_i, x_{i + head_dim / 2}) turned by its angle; in float32, back in x's dtype."""
    cos, sin = rope
    one, two = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1).astype(x.dtype)
