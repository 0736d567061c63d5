"""Rotary positions (Su et al. 2021, arXiv 2104.09864): frequencies, angles, the turn itself."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jlora.models._net._config import (
    DecoderConfig,
    LinearRopeScaling,
    RopeFactors,
    RopeScaling,
)

Rotary = tuple[jax.Array, jax.Array]  # cosines and sines: (batch, length, 1, turned / 2)


def rotary(config: DecoderConfig, positions: jax.Array, dtype: Any, *, local: bool) -> Rotary:
    """Cosines and sines at the positions, (batch, length); ``local``: of layers with a window."""
    angles = positions[..., None].astype(jnp.float32) * frequencies(config, local=local)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return cos[:, :, None].astype(dtype), sin[:, :, None].astype(dtype)


def frequencies(config: DecoderConfig, *, local: bool = False) -> jax.Array:
    """Radians a position for each pair of a head's turned dimensions, float32."""
    turned = int(config.head_dim * config.rotary_share)
    exponents = jnp.arange(0, turned, 2, dtype=jnp.float32) / turned
    if local and config.local_rope_theta is not None:
        return config.local_rope_theta**-exponents
    plain = config.rope_theta**-exponents
    if isinstance(config.rope_scaling, LinearRopeScaling):
        return plain / config.rope_scaling.factor
    if isinstance(config.rope_scaling, RopeFactors):
        return plain / jnp.array(config.rope_scaling.divisors, jnp.float32)
    return plain if config.rope_scaling is None else _stretched(plain, config.rope_scaling)


def _stretched(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Slow frequencies divided by the factor, fast ones as they are, a ramp between."""
    turns = scaling.original_max_position * frequencies / (2 * math.pi)
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = jnp.clip(ramp, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotate(x: jax.Array, rotary: Rotary | None) -> jax.Array:
    """(batch, length, heads, head_dim) with its first dimensions turned, in two halves."""
    if rotary is None:
        return x
    cos, sin = rotary
    turned = 2 * cos.shape[-1]
    kept = [x[..., turned:]] if turned < x.shape[-1] else []
    first, second = jnp.split(x[..., :turned] if kept else x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, *kept], axis=-1)
