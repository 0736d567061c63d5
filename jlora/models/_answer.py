"""How texts of different length become few batches of the same shapes, and answers become texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jlora.models._tokenizer import Tokenizer


def answer(
    tokenizer: Tokenizer,
    generate: Callable[..., jax.Array],
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """The answers in the prompts' order; see `Model.answer`."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    if empty := [index for index, tokens in enumerate(encoded) if not tokens]:
        raise ValueError(f"prompts {empty} (counted from 0) have no tokens: give each some text")
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    rows = min(batch_size, _at_least(len(prompts)))
    answers = [""] * len(prompts)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        tokens, lengths = pad_left([encoded[index] for index in chosen], rows)
        written = np.asarray(generate(tokens, lengths, max_new_tokens=max_new_tokens))
        for index, row in zip(chosen, written.tolist(), strict=False):
            ends = [at for at, token in enumerate(row) if token in tokenizer.stop_ids]
            answers[index] = tokenizer.decode(row[: ends[0]] if ends else row)
    return answers


def pad_left(encoded: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (rows, length), each prompt at the right end, and lengths (rows,).

    The length is rounded up to one of few; rows that are lacking repeat the last prompt, so that
    they end when it does.
    """
    encoded = [*encoded, *([encoded[-1]] * (rows - len(encoded)))]
    lengths = np.array([len(tokens) for tokens in encoded], np.int32)
    padded = np.zeros((rows, _at_least(int(lengths.max()), 16)), np.int32)
    for row, tokens in zip(padded, encoded, strict=True):
        row[len(row) - len(tokens) :] = tokens
    return padded, lengths


def _at_least(number: int, least: int = 1) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not below number and least."""
    power = 1 << max(0, max(number, least) - 1).bit_length()
    between = 3 * power // 4
    return between if between >= max(number, least) and power > 2 else power
