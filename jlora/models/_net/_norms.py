"""What keeps a layer's input in scale: RMSNorm, RMSNorm around one, LayerNorm."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig


class RMSNorm(nn.Module):
    """x / rms(x) * scale, or * (1 + scale), computed in float32 (Zhang and Sennrich 2019)."""

    epsilon: float
    plus_one: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros_init() if self.plus_one else nn.initializers.ones_init()
        scale = self.param("scale", init, (x.shape[-1],)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * (1.0 + scale if self.plus_one else scale)).astype(x.dtype)


def norm(config: DecoderConfig, name: str | None = None) -> nn.Module:
    """The family's norm; its statistics are float32 in each."""
    if config.norm == "layer":
        return nn.LayerNorm(config.norm_epsilon, use_fast_variance=False, name=name)
    return RMSNorm(config.norm_epsilon, config.norm == "rms_plus_one", name=name)
