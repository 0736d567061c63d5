"""Rotary positions (Su et al. 2021, arXiv 2104.09864): angles, and the turn itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._rope_scalings import plain

Rotary = tuple[jax.Array, jax.Array]  # cosines and sines: (batch, length, 1, turned / 2)


def rotary(
    config: DecoderConfig, positions: jax.Array, lengths: jax.Array, dtype: Any, *, local: bool
) -> Rotary:
    """Cosines and sines at the positions, (batch, length), of texts of such lengths.

    ``lengths`` is (batch, 1 or length); ``local``: of layers with a window.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if local and config.local_rope_theta is not None:
        theta, scaling = config.local_rope_theta, None
    turned = config.turned
    angles = positions[..., None].astype(jnp.float32) * (
        plain(theta, turned) if scaling is None else scaling.frequencies(theta, turned, lengths)
    )
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if scaling is not None and scaling.attention_factor != 1.0:
        cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
    return cos[:, :, None].astype(dtype), sin[:, :, None].astype(dtype)


def rotate(x: jax.Array, rotary: Rotary | None, *, interleaved: bool = False) -> jax.Array:
    """(batch, length, heads, head_dim) with its first dimensions turned.

    A dimension turns with the one half of them further on, or ``interleaved`` with its neighbour.
    """
    if rotary is None:
        return x
    cos, sin = rotary
    turned = 2 * cos.shape[-1]
    kept = [x[..., turned:]] if turned < x.shape[-1] else []
    turning = x[..., :turned] if kept else x
    if interleaved:
        first, second = turning[..., ::2], turning[..., 1::2]
        pairs = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return jnp.concatenate([pairs.reshape(turning.shape), *kept], axis=-1)
    first, second = jnp.split(turning, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, *kept], axis=-1)
