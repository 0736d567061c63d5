"""The next token from its logits: each transformation one function, then the draw.

They stand in the order of `filtered`. All take logits (..., vocabulary) float32 and numbers that
may be traced. Nothing is sorted, which would cost more than a small model's layers: what is kept is
all from some logit up, and that logit is found by halving.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily, unless a temperature is given.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens may be drawn; 0 for all (Fan et al. 2018,
            arXiv 1805.04833).
        top_p: only the most likely tokens that together reach this probability; 1 for all
            (Holtzman et al. 2019, arXiv 1904.09751).
        min_p: only tokens at least this share as likely as the most likely one; 0 for all (Nguyen
            et al. 2024, arXiv 2407.01082).
        repetition_penalty: above 1, what was said before, in the prompt too, is less likely (Keskar
            et al. 2019, arXiv 1909.05858).

    Raises:
        ValueError: when a number is out of its range: all of them at once.

    Example:
        >>> from jlora import models
        >>> sampling = models.Sampling(temperature=0.7, top_p=0.9)
        >>> list(sampling.numbers())  # those in use
        ['temperature', 'top_p']
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        ranges = {
            "temperature": (0 <= self.temperature < math.inf, "at least 0 (0 is greedy)"),
            "top_k": (
                isinstance(self.top_k, int | np.integer) and 0 <= self.top_k < 2**31,
                "a whole number of at least 0 (0 is all tokens)",
            ),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1 is all tokens)"),
            "min_p": (0 <= self.min_p <= 1, "from 0 (all tokens) to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0 (1 is none)"),
        }
        wrong = [
            f"{name} is {getattr(self, name)}: expected {expected}"
            for name, (right, expected) in ranges.items()
            if not right
        ]
        if wrong:
            raise ValueError(f"sampling: {'; '.join(wrong)}")

    def numbers(self) -> dict[str, Any]:
        """Those in use, as arrays: a function compiles once for each set of names, not of values.

        A temperature that float32 holds only as a denormal or 0 is greedy, and greedy needs no
        filter: each keeps the most likely token.
        """
        chosen: dict[str, Any] = {}
        if self.repetition_penalty != 1:
            chosen["repetition_penalty"] = np.float32(self.repetition_penalty)
        if self.temperature >= np.finfo(np.float32).tiny:
            chosen["temperature"] = np.float32(self.temperature)
            if self.top_k:
                chosen["top_k"] = np.int32(self.top_k)
            if self.top_p < 1:
                chosen["top_p"] = np.float32(self.top_p)
            if self.min_p:
                chosen["min_p"] = np.float32(self.min_p)
        return chosen


GREEDY = Sampling()


def repetition_penalty(logits: jax.Array, said: jax.Array, penalty: Any) -> jax.Array:
    """Logits of what was said before divided by the penalty, or times it where they are negative.

    (Keskar et al. 2019, arXiv 1909.05858, with the sign heeded, as transformers does.)

    Args:
        logits: (..., vocabulary).
        said: (..., vocabulary) bool.
        penalty: above 0.
    """
    return jnp.where(said, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def temperature(logits: jax.Array, degree: Any) -> jax.Array:
    """Logits / degree, less a constant: the highest becomes 0, so that none overflows."""
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / degree


def top_k(logits: jax.Array, k: Any) -> jax.Array:
    """The k highest logits, and all that equal the k-th; the others -inf."""
    return _highest(logits, jnp.ones((), jnp.int32), k)


def top_p(logits: jax.Array, p: Any) -> jax.Array:
    """The fewest of the highest logits whose probabilities reach p; the others -inf.

    (Holtzman et al. 2019, arXiv 1904.09751.) Logits that equal the lowest of these stay too.
    """
    return _highest(logits, jax.nn.softmax(logits, axis=-1), p)


def min_p(logits: jax.Array, share: Any) -> jax.Array:
    """The logits of tokens at least ``share`` times as likely as the likeliest; the others -inf.

    (Nguyen et al. 2024, arXiv 2407.01082.)
    """
    highest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(logits - highest >= jnp.log(share), logits, -jnp.inf)


def filtered(logits: jax.Array, numbers: Mapping[str, Any], said: jax.Array | None) -> jax.Array:
    """The logits to draw from: those of `Sampling.numbers` applied, in transformers' order."""
    if "repetition_penalty" in numbers:
        assert said is not None
        logits = repetition_penalty(logits, said, numbers["repetition_penalty"])
    for transform in (temperature, top_k, top_p, min_p):
        if transform.__name__ in numbers:
            logits = transform(logits, numbers[transform.__name__])
    return logits


def draw(
    logits: jax.Array, numbers: Mapping[str, Any], keys: jax.Array, said: jax.Array | None
) -> jax.Array:
    """One token for each row: (batch,) int32; the most likely if there is no temperature.

    Args:
        logits: (batch, vocabulary) float32.
        numbers: from `Sampling.numbers`.
        keys: (batch,) random keys, one a row.
        said: (batch, vocabulary) bool, for the repetition penalty; else None.
    """
    logits = filtered(logits, numbers, said)
    if "temperature" not in numbers:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _highest(logits: jax.Array, weights: jax.Array, needed: Any) -> jax.Array:
    """The logits from the highest down until their weights reach ``needed``; the others -inf.

    The lowest that stays is found bit by bit, from the highest bit of float32's order as integers.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    ordered = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def halve(step, lowest):
        higher = lowest | (jnp.uint32(1 << 31) >> jnp.uint32(step))
        reached = jnp.sum(jnp.where(ordered >= higher, weights, 0), axis=-1, keepdims=True)
        return jnp.where(reached >= needed, higher, lowest)

    lowest = jnp.zeros((*logits.shape[:-1], 1), jnp.uint32)
    return jnp.where(ordered >= jax.lax.fori_loop(0, 32, halve, lowest), logits, -jnp.inf)
