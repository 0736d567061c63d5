"""What keeps a layer's input in scale: RMSNorm and LayerNorm, with the scale around one or not."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig


def by_root_mean_square(x: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon), computed in float32, in which it is given back."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)


class Norm(nn.Module):
    """x / rms(x) * scale, computed in float32 (Zhang and Sennrich 2019, arXiv 1910.07467).

    LayerNorm (Ba et al. 2016, arXiv 1607.06450) subtracts x's mean first and may add a bias.
    """

    epsilon: float
    centred: bool = False
    plus_one: bool = False  # * (1 + scale)
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
        shape = (x.shape[-1],)
        scale = self.param("scale", zeros if self.plus_one else ones, shape).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        if self.centred:
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = by_root_mean_square(wide, self.epsilon)
        wide = wide * (1.0 + scale if self.plus_one else scale)
        if self.bias:
            wide = wide + self.param("bias", zeros, shape).astype(jnp.float32)
        return wide.astype(x.dtype)


_KINDS = {
    "rms": {},
    "rms_plus_one": {"plus_one": True},
    "layer_plus_one": {"centred": True, "bias": True, "plus_one": True},
    "layer_no_bias": {"centred": True},
}


def norm(config: DecoderConfig, name: str | None = None) -> nn.Module:
    """The family's norm; its statistics are float32 in each."""
    if config.norm == "layer":
        return nn.LayerNorm(config.norm_epsilon, use_fast_variance=False, name=name)
    return Norm(config.norm_epsilon, **_KINDS[config.norm], name=name)
