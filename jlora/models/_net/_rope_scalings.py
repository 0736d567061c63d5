"""Ways to stretch rotary positions over texts longer than those of the training.

Each is a record of numbers that gives the radians a position for each pair of turned dimensions,
and a factor on the cosines and sines (`attention_factor`), by which attention gets sharper.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp


def plain(theta: float, turned: int) -> jax.Array:
    """Radians a position, not stretched: (pairs,) float32."""
    return theta ** -(jnp.arange(0, turned, 2, dtype=jnp.float32) / turned)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary frequencies (Dubey et al. 2024, arXiv 2407.21783).

    Slow frequencies divided by the factor, fast ones as they are, a ramp between.

    Example:
        >>> from jlora import models
        >>> of_llama_3_1 = models.RopeScaling(
        ...     factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
        ... )
        >>> of_llama_3_1.original_max_position
        8192
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int
    attention_factor: ClassVar[float] = 1.0

    def frequencies(self, theta: float, turned: int, lengths: jax.Array) -> jax.Array:
        """Radians a position, (pairs,)."""
        frequencies = plain(theta, turned)
        turns = self.original_max_position * frequencies / (2 * math.pi)
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = jnp.clip(ramp, 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """All rotary frequencies divided by one factor (Chen et al. 2023, arXiv 2306.15595).

    Example:
        >>> from jlora import models
        >>> models.LinearRopeScaling(factor=4.0)
        LinearRopeScaling(factor=4.0)
    """

    factor: float
    attention_factor: ClassVar[float] = 1.0

    def frequencies(self, theta: float, turned: int, lengths: jax.Array) -> jax.Array:
        """Radians a position, (pairs,)."""
        return plain(theta, turned) / self.factor


@dataclasses.dataclass(frozen=True)
class RopeFactors:
    """Each rotary frequency divided by a number of its own, as GGUF files hold them.

    Example:
        >>> from jlora import models
        >>> models.RopeFactors(divisors=(1.0, 2.5)).frequencies(1e4, 4, None).shape
        (2,)
    """

    divisors: tuple[float, ...]
    attention_factor: ClassVar[float] = 1.0

    def frequencies(self, theta: float, turned: int, lengths: jax.Array) -> jax.Array:
        """Radians a position, (pairs,)."""
        return plain(theta, turned) / jnp.array(self.divisors, jnp.float32)


@dataclasses.dataclass(frozen=True)
class YarnRopeScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp over the pairs, by how often each turns.

    Pairs that turn ``beta_fast`` times or more in the original length keep their frequency, those
    that turn ``beta_slow`` times or less have it divided by the factor.

    Example:
        >>> from jlora import models
        >>> scaling = models.YarnRopeScaling(
        ...     factor=4.0, original_max_position=32768, attention_factor=1.1386
        ... )
        >>> scaling.frequencies(1e6, 64, None).shape
        (32,)
    """

    factor: float
    original_max_position: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # the ramp begins and ends at whole pairs

    def frequencies(self, theta: float, turned: int, lengths: jax.Array) -> jax.Array:
        """Radians a position, (pairs,)."""
        low, high = (self._pair(turns, theta, turned) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, turned - 1)
        frequencies = plain(theta, turned)
        width = (high - low) or 0.001  # a ramp that begins where it ends is a step
        divided = jnp.clip((jnp.arange(len(frequencies)) - low) / width, 0.0, 1.0)
        return frequencies * (1 - divided) + frequencies / self.factor * divided

    def _pair(self, turns: float, theta: float, turned: int) -> float:
        """The pair, a fraction of one too, that turns so often in the original length."""
        longest = self.original_max_position / (2 * math.pi * turns)
        return turned * math.log(longest) / (2 * math.log(theta))


@dataclasses.dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): each pair's frequency has its own divisor.

    There are two lists: ``long`` for a text that, at this pass, is longer than the original length,
    ``short`` for the others.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> scaling = models.LongRopeScaling(
        ...     short=(1.0, 1.0), long=(2.0, 8.0), original_max_position=4, attention_factor=1.0
        ... )
        >>> turned = scaling.frequencies(1e4, 4, jnp.array([[3], [6]]))  # texts' lengths
        >>> (turned[0, 0] / turned[1, 0]).tolist()  # the second is longer than 4 tokens
        [2.0, 8.0]
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_position: int
    attention_factor: float

    def frequencies(self, theta: float, turned: int, lengths: jax.Array) -> jax.Array:
        """Radians a position, (batch, 1 or length, pairs), by the lengths of the tokens' texts."""
        beyond = lengths[..., None] > self.original_max_position
        short, long = (jnp.array(each, jnp.float32) for each in (self.short, self.long))
        return plain(theta, turned) / jnp.where(beyond, long, short)


@dataclasses.dataclass(frozen=True)
class DynamicRopeScaling:
    """A base that grows with the text, once that is longer than the model was trained on.

    ("Dynamic NTK" by bloc97 and emozilla.) Each pass stretches by the length that each text has
    then; keys in a cache stay as the pass that made them turned them.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> scaling = models.DynamicRopeScaling(factor=2.0, max_position=4)
        >>> turned = scaling.frequencies(1e4, 4, jnp.array([[2], [7]]))  # texts' lengths
        >>> (turned[1] < turned[0]).tolist()  # the first pair of each turns as before
        [[False, True]]
    """

    factor: float
    max_position: int
    attention_factor: ClassVar[float] = 1.0

    def frequencies(self, theta: float, turned: int, lengths: jax.Array) -> jax.Array:
        """Radians a position, (batch, 1 or length, pairs), by the lengths of the tokens' texts."""
        longest = jnp.maximum(lengths[..., None], self.max_position).astype(jnp.float32)
        growth = self.factor * longest / self.max_position - (self.factor - 1)
        exponents = jnp.arange(0, turned, 2, dtype=jnp.float32) / (turned - 2)
        return plain(theta, turned) * growth**-exponents


Scaling = (
    RopeScaling
    | LinearRopeScaling
    | RopeFactors
    | YarnRopeScaling
    | LongRopeScaling
    | DynamicRopeScaling
)
