"""How a model continues prompts: one function of its parameters, with the keys and values cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora.models._config import DecoderConfig
from jlora.models._decoder import Cache, Decoder


def greedy(
    config: DecoderConfig,
    params: Any,
    tokens: jax.Array,  # (batch, length), padded on the left
    lengths: jax.Array,  # (batch,)
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
) -> jax.Array:  # (batch, max_new_tokens)
    """The continuations; see `Model.generate`.

    The parameters are constants of the loop, never carried: under `jlora.lift` they stay low-rank.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    batch, length = tokens.shape
    padding = length - lengths
    decoder = Decoder(config)
    stops = jnp.asarray(stop_ids, jnp.int32)

    def read(tokens, cache):
        state, cache = decoder.apply({"params": params}, tokens, cache, padding, method="read")
        logits = decoder.apply({"params": params}, state, method="logits")
        return jnp.argmax(logits, -1).astype(jnp.int32), cache

    def proceed(loop):
        count, _, ended, _, _ = loop
        return (count < max_new_tokens) & ~jnp.all(ended)

    def append(loop):
        count, token, ended, written, cache = loop
        following, cache = read(token[:, None], cache)
        token = jnp.where(ended, stops[0], following)
        written = lax.dynamic_update_index_in_dim(written, token, count, axis=1)
        return count + 1, token, ended | jnp.isin(token, stops), written, cache

    dtype = params["layers"]["attn"]["k_proj"]["kernel"].dtype
    token, cache = read(tokens, Cache.empty(config, batch, length, dtype))
    written = jnp.full((batch, max_new_tokens), stops[0]).at[:, 0].set(token)
    cache = cache.grown(max_new_tokens - 1)._replace(slot=jnp.int32(length), layer=0)
    loop = (jnp.int32(1), token, jnp.isin(token, stops), written, cache)
    return lax.while_loop(proceed, append, loop)[3]
