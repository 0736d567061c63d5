"""An answer's text as it is written, and what is kept of a conversation for its next answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jlora.models._answers._generate import (
    WRITES,
    Rules,
    State,
    bucket,
    check,
    compiled,
    decoded_where_used,
    prompt_of,
)
from jlora.models._answers._sampling import GREEDY, Sampling
from jlora.models._answers._stops import Stops, stops_of
from jlora.models._net._kinds import require_writer


@dataclasses.dataclass
class Memory:
    """The keys and values of a conversation, so that its next answer need not read it again.

    Pass one `Memory` to each `stream` of a conversation, always with the same model and weights.
    Whatever the messages are, only what begins as the last time is taken from it.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import tokenizers
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> init = jax.jit(models.Decoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
        >>> tokenizer = models.Tokenizer(words, "{{ messages[-1].content }}", (0,), {}, "tiny")
        >>> model = models.Model(params, config, tokenizer, "tiny")
        >>> messages, memory = [{"role": "user", "content": "yes"}], models.Memory()
        >>> pieces = list(models.stream(model, messages, max_new_tokens=2, memory=memory))
        >>> memory.shared([1, 1, 1])  # of such a prompt the first token need not be read again
        1
    """

    state: State | None = None

    def shared(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's tokens, short of the last, have their keys and values here."""
        if self.state is None:
            return 0
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):
            return 0  # interrupted in the middle of a step
        held = np.asarray(self.state.tokens)[0, int(self.state.starts[0]) : int(self.state.end) - 1]
        length = min(len(held), len(prompt) - 1)
        differing = np.flatnonzero(held[:length] != np.asarray(prompt[:length]))
        return int(differing[0]) if len(differing) else length


def stream(
    model: Any,
    messages: Sequence[dict[str, str]],
    *weights: Any,
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    memory: Memory | None = None,
) -> Iterator[str]:
    """The answer that `answer` gives to one conversation, piece by piece as it is written.

    A piece is whole characters: the first bytes of one wait for the others. So does what may yet
    turn out to be a string that stops.

    Args:
        model: from `jlora.models.load`.
        messages: the conversation, a list of ``{"role": ..., "content": ...}``.
        weights: the parameters, or ``frozen`` and ``lora``; the model's own if none are given.
        max_new_tokens: the longest answer, in tokens.
        sampling: how tokens are chosen.
        seed: of the random stream, from 0 to 2**32 - 1.
        stop: strings before which the answer ends, or special tokens by name, beside the model's.
        memory: of the conversation so far; it is left holding this answer too.

    Returns:
        the pieces; joined they are the answer.

    Raises:
        ValueError: when the prompt and its answer are longer than the model's positions,
            ``max_new_tokens`` or ``seed`` is out of its range, ``stop`` holds an empty string, or
            the model's chat template refuses the conversation, or it is an encoder or has a head
            for classification.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import tokenizers
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> init = jax.jit(models.Decoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
        >>> tokenizer = models.Tokenizer(words, "{{ messages[-1].content }}", (0,), {}, "tiny")
        >>> model = models.Model(params, config, tokenizer, "tiny")
        >>> messages = [{"role": "user", "content": "yes"}]
        >>> pieces = list(models.stream(model, messages, max_new_tokens=2))
        >>> "".join(pieces) == models.answer(model, [messages], max_new_tokens=2)[0]
        True
    """
    check(max_new_tokens, seed)
    require_writer(model.config, model.name, WRITES)
    stops = stops_of(model.tokenizer, stop)
    prompt = prompt_of(model, messages, max_new_tokens)
    rules = Rules(np.array(stops.tokens, np.int32), sampling.numbers())
    tokens = _tokens(
        model,
        prompt,
        decoded_where_used(weights or (model.params,)),
        rules,
        max_new_tokens,
        seed,
        memory or Memory(),
    )
    return _pieces(model.tokenizer, tokens, stops)


def _tokens(
    model: Any,
    prompt: list[int],
    weights: tuple[Any, ...],
    rules: Rules,
    max_new_tokens: int,
    seed: int,
    memory: Memory,
) -> Iterator[int]:
    """The answer's tokens before one that stops."""
    begin, advance = compiled(model.config, model.layout)
    held, shared = memory.state, memory.shared(prompt)
    if model.config.linear is not None:  # what it remembers can't be taken back, nor read twice
        held, shared = None, 0
    width = bucket(len(prompt) - shared)
    if held is not None and shared:
        slots, start = held.tokens.shape[1], int(held.starts[0])
    else:
        slots, start = 0, 0
    limit = model.config.length_that_turns
    if held is not None and shared and limit is not None:
        written = int(held.end) - 1 - start
        if (written > limit) != (len(prompt) > limit):  # its keys were turned otherwise
            slots = 0
    # The pass reads the last ``width`` tokens, those of the memory among them again.
    if start + len(prompt) < width or start + len(prompt) + max_new_tokens > slots:
        held, width = None, bucket(len(prompt))
        start = width - len(prompt)
        slots = 1 << (width + max_new_tokens - 1).bit_length()  # grows seldom, so compiles seldom
    end = start + len(prompt)
    text = np.zeros((1, slots), np.int32)
    text[0, start:end] = prompt
    cache, memory.state = held.cache if held is not None else None, None
    starts, row = np.array([start], np.int32), np.zeros(1, np.int32)
    memory.state = state = begin(
        weights, cache, text, starts, np.int32(end), np.uint32(seed), row, rules, width=width
    )
    for at in range(end, end + max_new_tokens):
        token = int(np.asarray(state.tokens)[0, at])
        if token in rules.stops:
            return
        if at + 1 < end + max_new_tokens:  # under way while the text goes out
            memory.state = state = advance(weights, state, rules, np.int32(at + 2))
        yield token


def _pieces(tokenizer: Any, tokens: Iterator[int], stops: Stops) -> Iterator[str]:
    """The text of the tokens, as much at a time as is settled."""
    read: list[int] = []
    given, text = "", ""
    for token in tokens:
        read.append(token)
        text = tokenizer.decode(read)
        if stops.text_before(text) != text:
            break
        settled = stops.settled(text)
        if len(settled) > len(given):
            yield settled[len(given) :]
            given = settled
    if rest := stops.text_before(text)[len(given) :]:
        yield rest
