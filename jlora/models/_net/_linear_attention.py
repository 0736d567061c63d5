"""Attention in time linear in the length: each head keeps a matrix, by the gated delta rule.

As Qwen3-Next has it (Qwen team 2025), after "Gated Delta Networks" (arXiv 2412.06464).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._delta_rule import gated_delta_rule
from jlora.models._net._laid_out import rows_laid_out
from jlora.models._net._mlp import ACTIVATION
from jlora.models._net._norms import by_root_mean_square
from jlora.models._net._part_configs import DeltaRule
from jlora.models._net._remat import product

_EPSILON = 1e-6  # of the lengths of queries and keys


class Convolution(nn.Module):
    """Each channel of (batch, taps - 1 + length, channels) summed over its last taps, weighted."""

    taps: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=0)
        weights = self.param("filter", init, (x.shape[-1], 1, self.taps)).astype(x.dtype)
        length = x.shape[1] - self.taps + 1
        out = x[:, :length] * weights[:, 0, 0]
        for tap in range(1, self.taps):
            out = out + x[:, tap : tap + length] * weights[:, 0, tap]
        return out


class GatedNorm(nn.Module):
    """x / rms(x) * scale * silu(gate), computed in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        normed = by_root_mean_square(x, self.epsilon).astype(gate.dtype) * scale
        return (normed * jax.nn.silu(gate.astype(jnp.float32))).astype(gate.dtype)


class LinearAttention(nn.Module):
    """Keys that several heads of values share, a short convolution, the gated delta rule."""

    config: DecoderConfig
    rule: DeltaRule

    @nn.compact
    def __call__(self, x, real, cache):
        config, rule = self.config, self.rule
        batch, length, _ = x.shape
        if real is not None:
            x = jnp.where(real[..., None], x, 0)  # padding writes nothing
        groups = rule.value_heads // rule.key_heads
        both = groups * rule.value_dim
        sizes = (rule.key_dim, rule.key_dim, both, both)
        *mixed, gate = self._by_key_head("in_proj_qkvz", sizes, x)
        strength, step = (
            each.reshape(batch, length, -1)
            for each in self._by_key_head("in_proj_ba", (groups, groups), x)
        )
        mixed = jnp.concatenate([each.reshape(batch, length, -1) for each in mixed], axis=-1)
        before, state = cache or empty_state(rule, batch, x.dtype)
        mixed = jnp.concatenate([before, mixed], axis=1)
        cache = mixed[:, length:], state
        mixed = ACTIVATION[config.activation](Convolution(rule.taps, name="conv1d")(mixed))
        ends = (rule.keys, 2 * rule.keys)
        query, key, value = (
            each.reshape(batch, length, -1, dims)
            for each, dims in zip(
                jnp.split(mixed, ends, axis=-1),
                (rule.key_dim, rule.key_dim, rule.value_dim),
                strict=True,
            )
        )
        zeros = nn.initializers.zeros_init()
        rate = jnp.exp(self.param("A_log", zeros, (rule.value_heads,)).astype(jnp.float32))
        bias = self.param("dt_bias", zeros, (rule.value_heads,)).astype(jnp.float32)
        read, state = gated_delta_rule(
            jnp.repeat(_unit(query), groups, axis=2) * rule.key_dim**-0.5,
            jnp.repeat(_unit(key), groups, axis=2),
            value,
            -rate * jax.nn.softplus(step.astype(jnp.float32) + bias),
            jax.nn.sigmoid(strength),
            state,
        )
        gate = gate.reshape(batch, length, rule.value_heads, rule.value_dim)
        normed = GatedNorm(config.norm_epsilon, name="norm")(read.astype(x.dtype), gate)
        out = nn.Dense(config.width, use_bias=False, name="out_proj")
        mixed = product(out(normed.reshape(batch, length, -1)))
        return rows_laid_out(mixed), (cache[0], state)

    def _by_key_head(self, name: str, sizes: tuple[int, ...], x: jax.Array) -> list[jax.Array]:
        """Products of these sizes, side by side in each head of keys."""
        heads = self.rule.key_heads
        out = product(nn.Dense(heads * sum(sizes), use_bias=False, name=name)(x))
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes) - 1)]
        return jnp.split(out.reshape(*x.shape[:2], heads, -1), ends, axis=-1)


def _unit(x: jax.Array) -> jax.Array:
    """Of length one, in float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + _EPSILON)


def empty_state(rule: DeltaRule, batch: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """What a text has left behind before its first token: inputs of the convolution, matrices."""
    before = jnp.zeros((batch, rule.taps - 1, rule.channels), dtype)
    matrices = (batch, rule.value_heads, rule.key_dim, rule.value_dim)
    return before, jnp.zeros(matrices, jnp.float32)
