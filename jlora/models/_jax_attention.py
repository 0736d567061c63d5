"""Attention as one operation of JAX's own, which on NVIDIA GPUs is cuDNN's fused kernel.

Scores never reach memory there ("FlashAttention", Dao et al. 2022, arXiv 2205.14135). A kernel has
conditions; `check` names those that a model does not meet.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jlora.models._config import DecoderConfig

ATTENTIONS = ("blocks", "xla", "cudnn")


def check(attention: str, config: DecoderConfig, dtype: Any) -> None:
    """Raises one ValueError that names everything for which this model can't have it."""
    if attention not in ATTENTIONS:
        raise ValueError(f"attention is {attention!r}: expected one of {', '.join(ATTENTIONS)}")
    if attention == "blocks":
        return
    problems = []
    if config.attention_cap is not None:
        problems.append(f"the model caps its scores at {config.attention_cap:g}")
    if attention == "cudnn":
        if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
            problems.append(f"it computes in bfloat16 or float16, not in {jnp.dtype(dtype).name}")
        if config.head_dim % 8 or config.head_dim > 256:
            problems.append(
                f"its heads have a multiple of 8 and at most 256 dimensions, not {config.head_dim}"
            )
        if (device := jax.default_backend()) != "gpu":
            problems.append(f"it needs an NVIDIA GPU, and JAX runs on {device} here")
    if problems:
        raise ValueError(f"attention={attention!r}: {'; '.join(problems)}: use attention='blocks'")


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, config: DecoderConfig, implementation: Any
) -> jax.Array:
    """Causal attention: (batch, length, heads, head_dim), key and value with their own heads.

    Raises:
        ValueError: when a layer's window is shorter than the text.
    """
    length = query.shape[1]
    window = min((window or length for window in config.windows or ()), default=length)
    if window < length:
        raise ValueError(
            f"attention={implementation!r} knows no windows, and this model has one of {window} "
            f"tokens, which is less than the text's {length}: use attention='blocks'"
        )
    scale = (config.query_scalar or config.head_dim) ** -0.5
    return jax.nn.dot_product_attention(
        query, key, value, scale=scale, is_causal=True, implementation=implementation
    )
