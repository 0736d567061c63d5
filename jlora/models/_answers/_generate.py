"""Text out of a model: pure functions over tokens, and the loop over prompts around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jlora._frozen_leaf import has_frozen_leaf
from jlora._lift import lift
from jlora.models._answers._sampling import GREEDY, Sampling, draw
from jlora.models._answers._stops import Stops, stops_of
from jlora.models._layout import Layout, computed
from jlora.models._net._config import DecoderConfig
from jlora.models._net._decoder import Cache, Decoder, empty_cache
from jlora.models._net._kinds import require_writer


class State(NamedTuple):
    """What is written so far. Prompts are padded on the left, so that all rows end together."""

    tokens: jax.Array  # (batch, slots) int32, what stands in each slot before ``end``
    starts: jax.Array  # (batch,) int32, the slot in which each row begins
    end: jax.Array  # () int32, the next free slot
    done: jax.Array  # (batch,) bool, rows that have stopped
    keys: jax.Array  # (batch,) random keys
    cache: Cache | None  # keys and values of what stands before ``end - 1``


class Rules(NamedTuple):
    """How an answer goes on."""

    stops: Any  # (count,) int32, tokens that end it
    numbers: dict[str, Any]  # from `Sampling.numbers`


def follow(decoder: Decoder, params: Any, state: State, rules: Rules, width: int) -> State:
    """The state with one token more in each row, after a pass over the last ``width`` slots.

    A row that has stopped gets the first of the stop tokens. With as many as there are slots, the
    pass is over all that is written, and what it makes of the free slots is never read.
    """
    tokens, starts, end, done, keys, cache = state
    batch, slots = tokens.shape

    def apply(*arguments: Any, method: str) -> Any:
        return decoder.apply({"params": params}, *arguments, method=method)

    everything = width == slots
    last = end - 1 if everything else -1
    first = jnp.int32(0) if everything else end - width
    read = jax.lax.dynamic_slice_in_dim(tokens, first, width, axis=1)
    if cache is None:
        dtype = jax.eval_shape(functools.partial(apply, read, method="hidden")).dtype
        cache = empty_cache(decoder.config, batch, slots, dtype)
    every, at = jnp.arange(slots), first + jnp.arange(width)
    positions = jnp.maximum(at[None] - starts[:, None], 0)
    if everything:  # free slots have no places of their own
        positions = jnp.minimum(positions, end - 1 - starts[:, None])
    seen = (every <= at[:, None])[None] & (every >= starts[:, None, None])  # (batch, width, slots)
    hidden, cache = apply(read, positions, seen, cache, first, method="extend")
    logits = apply(hidden[:, last], method="logits")
    said = None
    if "repetition_penalty" in rules.numbers:
        rows = jnp.arange(batch)[:, None]
        said = jnp.zeros(logits.shape, bool).at[rows, tokens].max(seen[:, last])
    # By its place in its own row, so that neither the padding nor the batch matters.
    keys_here = jax.vmap(jax.random.fold_in)(keys, end - starts)
    following = draw(logits, rules.numbers, keys_here, said)
    following = jnp.where(done, rules.stops[0], following)
    tokens = jax.lax.dynamic_update_slice(tokens, following[:, None], (0, end))
    return State(tokens, starts, end + 1, done | jnp.isin(following, rules.stops), keys, cache)


def advance(decoder: Decoder, params: Any, state: State, rules: Rules, until: Any) -> State:
    """The state when slot ``until`` is the next free one, or all rows have stopped."""

    def going(state: State) -> jax.Array:
        return (state.end < until) & ~jnp.all(state.done)

    def step(state: State) -> State:
        return follow(decoder, params, state, rules, 1)

    limit, slots = decoder.config.length_that_turns, state.tokens.shape[1]
    if limit is None or slots <= limit:
        return jax.lax.while_loop(going, step, state)

    def step_or_turn(state: State) -> State:
        """Every position of a text turns otherwise once it is long: then all is read again."""
        turns = jnp.any(state.end - state.starts == limit + 1)
        again = functools.partial(follow, decoder, params, rules=rules, width=slots)
        return jax.lax.cond(turns, again, step, state)

    return jax.lax.while_loop(going, step_or_turn, state)


def generate(
    decoder: Decoder,
    params: Any,
    tokens: jax.Array,
    starts: jax.Array,
    keys: jax.Array,
    rules: Rules,
    max_new_tokens: int,
) -> jax.Array:
    """The next tokens, one after the other: (batch, max_new_tokens) int32.

    After a stop token a row holds the first of the stop tokens on; when all rows have stopped, so
    does the loop.

    Args:
        decoder: the model.
        params: the model's parameters.
        tokens: (batch, length) int32, prompts padded on the left.
        starts: (batch,) int32, where each prompt begins.
        keys: (batch,) random keys, one a row.
        rules: which tokens stop, and how to draw.
        max_new_tokens: the longest answer, in tokens; static.
    """
    batch, length = tokens.shape
    free = jnp.full((batch, max_new_tokens), rules.stops[0], jnp.int32)
    written = jnp.concatenate([jnp.asarray(tokens, jnp.int32), free], axis=1)
    state = State(written, starts, jnp.int32(length), jnp.zeros(batch, bool), keys, None)
    state = follow(decoder, params, state, rules, length)
    return advance(decoder, params, state, rules, length + max_new_tokens).tokens[:, length:]


class Compiled(NamedTuple):
    """The jitted functions of a model: each compiles once for each shape and set of rules."""

    begin: Callable[..., State]
    advance: Callable[..., State]


@functools.cache
def compiled(config: DecoderConfig, layout: Layout | None = None) -> Compiled:
    """The jitted functions, with the weights, (params,) or (frozen, lora), as first argument."""
    decoder = Decoder(config)

    def with_weights(fn: Callable, weights: tuple[Any, ...]) -> Callable:
        pure = computed(layout, functools.partial(fn, decoder))
        return functools.partial(lift(pure) if len(weights) == 2 else pure, *weights)

    def begin(weights, cache, tokens, starts, end, seed, rows, rules, *, width):
        """The state after a prompt. ``rows`` choose the random streams; those below 0 are empty."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)
        state = State(tokens, starts, end, rows < 0, keys, cache)
        return with_weights(functools.partial(follow, width=width), weights)(state, rules)

    def go_on(weights, state, rules, until):
        return with_weights(advance, weights)(state, rules, until)

    # all but the cache is looked at by every process
    whole: Any = None if layout is None else layout.whole
    out = None if layout is None else State(whole, whole, whole, whole, whole, None)
    return Compiled(
        jax.jit(begin, static_argnames="width", donate_argnames="cache", out_shardings=out),
        jax.jit(go_on, donate_argnames="state", out_shardings=out),
    )


def bucket(length: int) -> int:
    """The length for which to compile: multiples of 32, coarser the longer, at most a quarter more.

    Four lengths for each doubling, from 256 on.
    """
    step = max(32, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


def prompt_of(model: Any, row: Sequence[Any], max_new_tokens: int) -> list[int]:
    """The tokens before the answer to a conversation.

    Raises:
        ValueError: when there are none, or they and the answer are longer than the model's
            positions.
    """
    prompt = model.tokenizer.encode(model.tokenizer.render(row, add_generation_prompt=True))
    if not prompt:
        raise ValueError(
            f"the chat template of {model.name} writes nothing of the conversation: expected at "
            "least one token to go on from"
        )
    if len(prompt) + max_new_tokens > model.config.max_length:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and an answer of {max_new_tokens} are longer than "
            f"the {model.config.max_length} positions of {model.name}: shorten one of them"
        )
    return prompt


def check(max_new_tokens: int, seed: int, batch_size: int = 1) -> None:
    """Raises ValueError for a number that no answer can have."""
    for name, number in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}: expected at least 1")
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**32):
        raise ValueError(f"seed is {seed}: expected a whole number from 0 to 2**32 - 1")


WRITES = "writes answers"  # what only a decoder does
CHECKED = 16  # tokens between two looks for the strings that stop


def answer(
    model: Any,
    rows: Sequence[Sequence[dict[str, str]]],
    *weights: Any,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop: str | Sequence[str] = (),
) -> list[str]:
    """The model's answer to each conversation, greedily unless ``sampling`` says otherwise.

    Prompts of like length are answered together, in lengths padded to a few, so that few shapes
    compile; neither another number of ``sampling`` nor another seed compiles anew. Each row draws
    from a random stream of its own, which its place in ``rows`` and the seed alone decide.

    Args:
        model: from `jlora.models.load`.
        rows: conversations, each a list of ``{"role": ..., "content": ...}``, the last the user's.
        weights: the parameters, or ``frozen`` and ``lora``; the model's own if none are given.
        max_new_tokens: the longest answer, in tokens.
        batch_size: conversations at a time.
        sampling: how tokens are chosen.
        seed: of the random streams, from 0 to 2**32 - 1.
        stop: strings before which an answer ends, or special tokens by name, beside the model's.

    Returns:
        the answers, in the order of ``rows``.

    Raises:
        ValueError: when a prompt and its answer are longer than the model's positions,
            ``max_new_tokens``, ``batch_size`` or ``seed`` is out of its range, ``stop`` holds an
            empty string, the model's chat template refuses a conversation, or it is an
            encoder or has a head for classification.

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
        >>> answers = models.answer(model, [[{"role": "user", "content": "yes"}]], max_new_tokens=2)
        >>> len(answers)
        1
    """
    check(max_new_tokens, seed, batch_size)
    require_writer(model.config, model.name, WRITES)
    stops = stops_of(model.tokenizer, stop)
    prompts = [prompt_of(model, row, max_new_tokens) for row in rows]
    rules = Rules(np.array(stops.tokens, np.int32), sampling.numbers())
    begin, _ = compiled(model.config, model.layout)
    weights = decoded_where_used(weights or (model.params,))
    answers: list[str] = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    batch = min(batch_size, len(order))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        width = bucket(max(len(prompts[at]) for at in chosen))
        tokens = np.zeros((batch, width + bucket(max_new_tokens)), np.int32)
        starts = np.full(batch, width - 1, np.int32)
        at_rows = np.full(batch, -1, np.int32)
        for line, at in enumerate(chosen):
            starts[line] = width - len(prompts[at])
            tokens[line, starts[line] : width] = prompts[at]
            at_rows[line] = at
        end, seeded = np.int32(width), np.uint32(seed)
        state = begin(weights, None, tokens, starts, end, seeded, at_rows, rules, width=width)
        texts = _written(model, weights, state, rules, stops, width, width + max_new_tokens)
        for at, text in zip(chosen, texts, strict=False):  # the last batch may have empty lines
            answers[at] = text
    return answers


def decoded_where_used(weights: tuple[Any, ...]) -> tuple[Any, ...]:
    """Parameters that are kept in a few bits as (frozen, lora); all else as it is."""
    return (*weights, {}) if len(weights) == 1 and has_frozen_leaf(weights[0]) else weights


def _written(
    model: Any, weights: Any, state: State, rules: Rules, stops: Stops, width: int, limit: int
) -> list[str]:
    """The text of each line from slot ``width`` on, at most to ``limit``.

    Tokens stop on the device. Strings are looked for here, now and then: what is written beyond one
    is cut off.
    """
    looks = [*range(width + CHECKED, limit, CHECKED), limit] if stops.strings else [limit]
    texts = []
    for until in looks:
        state = compiled(model.config, model.layout).advance(weights, state, rules, np.int32(until))
        lines = np.asarray(state.tokens)[:, width:until]
        whole = [model.tokenizer.decode(stops.tokens_before(line)) for line in lines]
        texts = [stops.text_before(text) for text in whole]
        stopped = [text != its for text, its in zip(texts, whole, strict=True)]
        state = state._replace(done=np.asarray(state.done) | stopped)
        if np.all(state.done):
            break
    return texts
