"""Which rows make up step n: a pure function of the seed and the step, in few lengths."""

from __future__ import annotations

import abc
import functools
import random
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class Plan:
    """The rows of each step's batch, and the length to which they are padded.

    Args:
        lengths: of each row, in tokens.
        batch_size: rows in a batch.
        seed: of the order.
        shapes: at most so many lengths.
        shuffle: False keeps the rows' order within each bucket, for evaluation.
        max_length: the most tokens of a row; no batch is padded beyond them.

    Raises:
        ValueError: when there is no row or a longer one, or no batch can be as small.
    """

    def __init__(
        self,
        lengths: Iterable[int],
        *,
        batch_size: int,
        seed: int,
        shapes: int,
        shuffle: bool,
        max_length: int | None,
    ):
        if batch_size < 1 or shapes < 1:
            raise ValueError(f"batch_size {batch_size} and shapes {shapes} must be at least 1")
        self.row_lengths = np.fromiter(lengths, np.int32)
        if not len(self.row_lengths):
            raise ValueError("no examples: expected at least one")
        longest = int(self.row_lengths.max())
        if max_length is not None and longest > max_length:
            raise ValueError(
                f"a row has {longest} tokens: expected at most max_length {max_length}"
            )
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        lengths = _bucket_lengths(self.row_lengths, shapes)
        self.lengths = lengths if max_length is None else [min(x, max_length) for x in lengths]
        self.bucket = np.searchsorted(self.lengths, self.row_lengths).astype(np.int16)
        self._epoch = functools.lru_cache(maxsize=3)(self._plan)

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch: the same number in each."""
        return len(self._epoch(0))

    def __call__(self, step: int) -> tuple[int, np.ndarray]:
        """The (bucket, rows) of the step, counted from 0."""
        epoch, index = divmod(step, self.per_epoch)
        return self._epoch(epoch)[index]

    def _plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """The (bucket, rows) of each batch of the epoch."""
        rng = random.Random(f"{self.seed}/{epoch}")
        count = len(self.row_lengths)
        order = at_random(count, rng) if self.shuffle else np.arange(count)
        order = order.astype(np.int32)
        plan, rest = [], order[:0]
        for bucket in range(len(self.lengths)):
            rows = np.concatenate([rest, order[self.bucket[order] == bucket]])
            last = bucket == len(self.lengths) - 1
            whole = len(rows) if last else len(rows) - len(rows) % self.batch_size
            plan += [(bucket, part) for part in _parts(rows[:whole], self.batch_size)]
            rest = rows[whole:]  # these fill up batches of the next longer bucket
        if self.shuffle:
            plan.sort(key=lambda _: rng.random())
        return plan


class Planned(abc.ABC):
    """Batches by the step's number: what those of each kind of row have in common.

    Args:
        plan: which rows are in which batch, and how long they are made.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        self.batch_size = plan.batch_size

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch: the same number in each."""
        return self._plan.per_epoch

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of the step, counted from 0."""
        return self.part(step, 0, self.batch_size)

    @abc.abstractmethod
    def part(self, step: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """The rows ``start:stop`` of the step's batch, as they stand there."""

    def rows(self, step: int) -> list[int]:
        """Which examples make up the step's batch, in its order."""
        return self._plan(step)[1].tolist()

    def tokens(self, step: int) -> int:
        """How many tokens the step's batch holds, padding left out."""
        return int(self._plan.row_lengths[self._plan(step)[1]].sum())

    def counts(self, step: int) -> dict[str, int]:
        """Its ``tokens``, ``tokens_trained``, and with padding ``tokens_processed``."""
        bucket, rows = self._plan(step)
        return {
            "tokens": self.tokens(step),
            "tokens_trained": self._trained(rows),
            "tokens_processed": self.batch_size * self._plan.lengths[bucket],
        }

    @abc.abstractmethod
    def _trained(self, rows: np.ndarray) -> int:
        """How many labels these rows have."""


def at_random(count: int, rng: random.Random) -> np.ndarray:
    """(count,) int64: the numbers below it in an order that the generator draws."""
    places = np.fromiter((rng.random() for _ in range(count)), np.float64, count)
    return np.argsort(places, kind="stable")


def _bucket_lengths(lengths: npt.ArrayLike, count: int) -> list[int]:
    """At most ``count`` lengths, rising, that hold all rows with the least padding."""
    lengths = np.asarray(lengths)
    # some 32 candidates, however long the rows
    unit = 8 * round_up(int(lengths.max()), 256) // 256
    found, rows = np.unique(-(-lengths // unit) * unit, return_counts=True)
    candidates = found.tolist()
    up_to = [0, *rows.cumsum().tolist()]

    @functools.cache
    def best(first: int, buckets: int) -> tuple[int, tuple[int, ...]]:
        """(tokens, limits) of so many buckets for the candidates from ``first`` on."""
        if buckets == 1:
            return candidates[-1] * (up_to[-1] - up_to[first]), (candidates[-1],)
        found = []
        for at in range(first, len(candidates) - buckets + 1):
            tokens, limits = best(at + 1, buckets - 1)
            own = candidates[at] * (up_to[at + 1] - up_to[first])
            found.append((own + tokens, (candidates[at], *limits)))
        return min(found)

    return list(best(0, min(count, len(candidates)))[1])


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def round_up(number: int, unit: int) -> int:
    """The least multiple of the unit that is no smaller."""
    return -(-number // unit) * unit
