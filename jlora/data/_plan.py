"""Which rows make up step n: a pure function of the seed and the step, in few lengths."""

from __future__ import annotations

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

    Raises:
        ValueError: when there is no row, or no batch can be as small.
    """

    def __init__(
        self, lengths: Iterable[int], *, batch_size: int, seed: int, shapes: int, shuffle: bool
    ):
        if batch_size < 1 or shapes < 1:
            raise ValueError(f"batch_size {batch_size} and shapes {shapes} must be at least 1")
        self.row_lengths = np.fromiter(lengths, np.int32)
        if not len(self.row_lengths):
            raise ValueError("no examples: expected at least one")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.lengths = _bucket_lengths(self.row_lengths, shapes)
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
        order = np.arange(len(self.row_lengths), dtype=np.int32)
        if self.shuffle:
            places = np.fromiter((rng.random() for _ in order), np.float64, len(order))
            order = order[np.argsort(places, kind="stable")]
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


def _bucket_lengths(lengths: npt.ArrayLike, count: int) -> list[int]:
    """At most ``count`` lengths, rising, that hold all rows with the least padding."""
    lengths = np.asarray(lengths)
    # some 32 candidates, however long the rows
    unit = 8 * _round_up(int(lengths.max()), 256) // 256
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


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
