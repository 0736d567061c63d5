"""Which rows make up step n: a pure function of the seed and the step, in few shapes."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jlora.data._examples import Examples
from jlora.data._turn import Example

# tokens (batch, length) int32; positions (batch, answers) int32, whose next token is an answer;
# labels (batch, answers) int32, those next tokens; weights (batch, answers) float32, 0 for padding;
# where rows share sequences, segments (batch, length) int32, which row a token belongs to.
Batch = dict[str, np.ndarray]


class Batches:
    """The training batches: ``batches(step)`` depends on the arguments and on nothing else.

    Each epoch visits every row once, in an order of its own. Rows of like length share a batch:
    lengths fall into ``shapes`` buckets, chosen to pad as little as possible, because each shape
    compiles a program of its own. A batch that rows can't fill ends in rows of weight 0.

    Args:
        examples: from `encode`.
        batch_size: rows in a batch.
        seed: of the order.
        shapes: at most so many.
        shuffle: False keeps the rows' order within each bucket, for evaluation.

    Raises:
        ValueError: when there is no example, or no batch can be as small.

    Example:
        >>> from jlora.data import Batches, Example
        >>> examples = [Example(tokens=[5, 3, 7, 1], answers=[1, 2])] * 10
        >>> batches = Batches(examples, batch_size=4, seed=0)
        >>> batches.per_epoch, batches.shapes
        (3, [(8, 8)])
        >>> batch = batches(0)
        >>> batch["tokens"].shape, batch["weights"].sum().item()  # 4 rows of two answers
        ((4, 8), 8.0)
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        seed: int = 0,
        shapes: int = 3,
        shuffle: bool = True,
    ):
        if not examples:
            raise ValueError("no examples: expected at least one")
        if batch_size < 1 or shapes < 1:
            raise ValueError(f"batch_size {batch_size} and shapes {shapes} must be at least 1")
        self.examples = examples if isinstance(examples, Examples) else list(examples)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        sizes = ((len(tokens), len(answers)) for tokens, answers in examples)
        self._sizes = np.fromiter(sizes, np.dtype((np.int32, 2)), len(examples))
        lengths = self._sizes[:, 0]
        self.lengths = _bucket_lengths(lengths, shapes)
        self._bucket = np.searchsorted(self.lengths, lengths).astype(np.int16)
        self.answers = self._answer_sizes()
        self._epoch = functools.lru_cache(maxsize=3)(self._plan)

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch: the same number in each."""
        return len(self._epoch(0))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The (length, answers) of each shape that a batch may have."""
        return list(zip(self.lengths, self.answers, strict=True))

    def __call__(self, step: int) -> Batch:
        """The batch of the step, counted from 0."""
        epoch, index = divmod(step, self.per_epoch)
        bucket, rows = self._epoch(epoch)[index]
        length, answers = self.lengths[bucket], self.answers[bucket]
        batch = {
            "tokens": np.zeros((self.batch_size, length), np.int32),
            "positions": np.zeros((self.batch_size, answers), np.int32),
            "labels": np.zeros((self.batch_size, answers), np.int32),
            "weights": np.zeros((self.batch_size, answers), np.float32),
        }
        for place, row in enumerate(rows):
            tokens, positions = (np.asarray(part, np.int32) for part in self.examples[row])
            batch["tokens"][place, : len(tokens)] = tokens
            batch["positions"][place, : len(positions)] = positions
            batch["labels"][place, : len(positions)] = tokens[positions + 1]
            batch["weights"][place, : len(positions)] = 1
        return batch

    def rows(self, step: int) -> list[int]:
        """Which examples make up the step's batch, in its order."""
        epoch, index = divmod(step, self.per_epoch)
        return self._epoch(epoch)[index][1].tolist()

    def tokens(self, step: int) -> int:
        """How many tokens the step's batch holds, padding left out."""
        return int(self._sizes[self.rows(step), 0].sum())

    def counts(self, step: int) -> dict[str, int]:
        """What the step's batch holds: ``tokens``, ``trained`` of them, ``positions`` in all."""
        epoch, index = divmod(step, self.per_epoch)
        bucket, rows = self._epoch(epoch)[index]
        tokens, trained = self._sizes[rows].sum(axis=0).tolist()
        positions = self.batch_size * self.lengths[bucket]
        return {"tokens": tokens, "trained": trained, "positions": positions}

    def _plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """The (bucket, rows) of each batch of the epoch."""
        rng = random.Random(f"{self.seed}/{epoch}")
        order = np.arange(len(self._sizes), dtype=np.int32)
        if self.shuffle:
            places = np.fromiter((rng.random() for _ in order), np.float64, len(order))
            order = order[np.argsort(places, kind="stable")]
        plan, rest = [], order[:0]
        for bucket in range(len(self.lengths)):
            rows = np.concatenate([rest, order[self._bucket[order] == bucket]])
            last = bucket == len(self.lengths) - 1
            whole = len(rows) if last else len(rows) - len(rows) % self.batch_size
            plan += [(bucket, part) for part in _parts(rows[:whole], self.batch_size)]
            rest = rows[whole:]  # these fill up batches of the next longer bucket
        if self.shuffle:
            plan.sort(key=lambda _: rng.random())
        return plan

    def _answer_sizes(self) -> list[int]:
        """Places for answers in each bucket: enough for its own rows and those of shorter ones."""
        most = [
            _round_up(int(self._sizes[self._bucket == bucket, 1].max(initial=0)), 8)
            for bucket in range(len(self.lengths))
        ]
        return list(itertools.accumulate(most, max))


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
