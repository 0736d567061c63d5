"""Attention as one operation of JAX's own, which on NVIDIA GPUs is cuDNN's fused kernel.

Scores never reach memory there ("FlashAttention", Dao et al. 2022, arXiv 2205.14135).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._encoder_config import Config, EncoderConfig

ATTENTIONS = ("blocks", "xla", "cudnn")


def known(attention: str) -> None:
    """Raises ValueError for a name that is none of the three."""
    if attention not in ATTENTIONS:
        raise ValueError(f"attention is {attention!r}: expected one of {', '.join(ATTENTIONS)}")


def check(attention: str, config: Config, dtype: Any) -> None:
    """Raises one ValueError that names all for which this model can't have it on this machine."""
    known(attention)
    if attention == "blocks":
        return
    if isinstance(config, EncoderConfig):
        _raise(attention, ["every token of an encoder sees all others"])
        return
    problems = _of_the_model(config)
    if attention == "cudnn":
        narrow = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        if not narrow:
            problems.append(f"it computes in bfloat16 or float16, not in {jnp.dtype(dtype).name}")
        if config.head_dim % 8 or config.head_dim > 256:
            problems.append(
                f"its heads have a multiple of 8 and at most 256 dimensions, not {config.head_dim}"
            )
        elif words := _refused(config.head_dim, dtype if narrow else jnp.bfloat16):
            problems.append(f"JAX, which runs on {jax.default_backend()} here, says {words!r}")
    _raise(attention, problems)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, config: DecoderConfig, attention: Any
) -> jax.Array:
    """Causal attention: (batch, length, heads, head_dim), key and value with their own heads.

    Raises:
        ValueError: when the model is of another kind.
    """
    known(attention)
    _raise(attention, _of_the_model(config))
    length = query.shape[1]
    if attention == "cudnn" and length % 2:  # its gradient wants an even length
        pad = lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))  # noqa: E731
        query, key, value = pad(query), pad(key), pad(value)  # which no token before it sees
    window = None if config.windows is None else config.windows[0]
    out = jax.nn.dot_product_attention(
        *(query, key, value),
        scale=config.score_scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=attention,
    )
    return out[:, :length]


def _of_the_model(config: DecoderConfig) -> list[str]:
    problems = []
    if config.attention_cap is not None:
        problems.append(f"the model caps its scores at {config.attention_cap:g}")
    if config.value_dim != config.head_dim:
        problems.append(
            f"its values have {config.value_dim} dimensions a head, its keys {config.head_dim}"
        )
    if config.sinks:
        problems.append("its heads have sinks")
    if len(set(config.windows or ())) > 1:
        problems.append("its layers see differently far back")
    if config.chunks is not None:
        problems.append("its tokens see chunks of the text")
    return problems


def _refused(head_dim: int, dtype: Any) -> str | None:
    """What JAX says against the kernel's gradient on this machine, which it knows unasked."""
    x = jax.ShapeDtypeStruct((1, 2, 1, head_dim), dtype)

    def total(x):
        return jax.nn.dot_product_attention(x, x, x, is_causal=True, implementation="cudnn").sum()

    try:
        jax.eval_shape(jax.grad(total), x)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error)
    return None


def _raise(attention: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"attention={attention!r}: {'; '.join(problems)}: use attention='blocks'")
