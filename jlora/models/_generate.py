"""Text out of a model: one pure function over tokens, and the loop over prompts around it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora._lift import lift
from jlora.models._config import DecoderConfig
from jlora.models._decoder import Decoder, empty_cache


def generate(
    decoder: Decoder,
    stop_ids: tuple[int, ...],
    params: Any,
    tokens: jax.Array,
    starts: jax.Array,
    max_new_tokens: int,
) -> jax.Array:
    """The most likely next tokens, one after the other: (batch, max_new_tokens) int32.

    Prompts are padded on the left, so that all rows share the cache's next slot. After a stop token
    a row holds that token on; when all rows have stopped, so does the loop.

    Args:
        decoder: the model.
        stop_ids: tokens that end an answer.
        params: the model's parameters.
        tokens: (batch, length) int32, prompts padded on the left.
        starts: (batch,) int32, where each prompt begins.
        max_new_tokens: the longest answer, in tokens; static.
    """
    batch, length = tokens.shape
    slots = jnp.arange(length + max_new_tokens)

    def apply(*arguments: Any, method: str) -> Any:
        return decoder.apply({"params": params}, *arguments, method=method)

    stops = jnp.array(stop_ids, jnp.int32)
    cache_dtype = jax.eval_shape(functools.partial(apply, tokens, method="hidden")).dtype

    def extend(tokens, cache, slot):
        at = slot + jnp.arange(tokens.shape[1])
        positions = jnp.maximum(at[None] - starts[:, None], 0)
        seen = (slots <= at[:, None])[None] & (slots >= starts[:, None, None])
        hidden, cache = apply(tokens, positions, seen, cache, slot, method="extend")
        logits = apply(hidden[:, -1], method="logits")
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

    cache = empty_cache(decoder.config, batch, len(slots), cache_dtype)
    following, cache = extend(tokens, cache, 0)
    written = jnp.full((batch, max_new_tokens), stop_ids[0], jnp.int32)

    def going(state):
        step, _, done, _, _ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def step(state):
        step, following, done, written, cache = state
        following = jnp.where(done, stops[0], following)
        written = jax.lax.dynamic_update_slice(written, following[:, None], (0, step))
        done = done | jnp.isin(following, stops)
        following, cache = extend(following[:, None], cache, length + step)
        return step + 1, following, done, written, cache

    state = (0, following, jnp.zeros(batch, bool), written, cache)
    return jax.lax.while_loop(going, step, state)[3]


@functools.cache
def _compiled(config: DecoderConfig, stop_ids: tuple[int, ...], adapted: bool) -> Callable:
    """One jitted function for a model, with the weights as arguments."""
    pure = functools.partial(generate, Decoder(config), stop_ids)
    return jax.jit(lift(pure) if adapted else pure, static_argnames="max_new_tokens")


def answer(
    model: Any,
    rows: Sequence[Sequence[dict[str, str]]],
    *weights: Any,
    max_new_tokens: int = 256,
    batch_size: int = 32,
) -> list[str]:
    """The model's answer to each conversation, greedily.

    Prompts of like length are answered together, in lengths padded to multiples of 32, so that few
    shapes compile.

    Args:
        model: from `jlora.models.load`.
        rows: conversations, each a list of ``{"role": ..., "content": ...}``, the last the user's.
        weights: the parameters, or ``frozen`` and ``lora``; the model's own if none are given.
        max_new_tokens: the longest answer, in tokens.
        batch_size: conversations at a time.

    Raises:
        ValueError: when a prompt and its answer are longer than the model's positions.
    """
    prompts = [
        model.tokenizer.encode(model.tokenizer.render(row, add_generation_prompt=True))
        for row in rows
    ]
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > model.config.max_length:
        raise ValueError(
            f"a prompt of {longest} tokens and an answer of {max_new_tokens} are longer than the "
            f"{model.config.max_length} positions of {model.name}: shorten one of them"
        )
    run = _compiled(model.config, model.tokenizer.stop_ids, len(weights) == 2)
    weights = weights or (model.params,)
    answers: list[str] = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        width = -(-max(len(prompts[at]) for at in chosen) // 32) * 32
        tokens = np.zeros((min(batch_size, len(order)), width), np.int32)
        starts = np.full(len(tokens), width - 1, np.int32)
        for line, at in enumerate(chosen):
            starts[line] = width - len(prompts[at])
            tokens[line, starts[line] :] = prompts[at]
        written = np.asarray(run(*weights, tokens, starts, max_new_tokens=max_new_tokens))
        for line, at in enumerate(chosen):
            answers[at] = model.tokenizer.decode(
                _until_stop(written[line], model.tokenizer.stop_ids)
            )
    return answers


def _until_stop(tokens: np.ndarray, stop_ids: Sequence[int]) -> list[int]:
    stops = np.flatnonzero(np.isin(tokens, stop_ids))
    return tokens[: stops[0]].tolist() if len(stops) else tokens.tolist()
