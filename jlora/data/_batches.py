"""The training batches of conversations: tokens, and where answers are to be predicted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from jlora.data._examples import Examples
from jlora.data._plan import Plan, Planned, round_up
from jlora.data._turn import Example

# tokens (batch, length) int32; positions (batch, answers) int32, whose next token is an answer;
# labels (batch, answers) int32, those next tokens; weights (batch, answers) float32, 0 for padding;
# where rows share sequences, segments (batch, length) int32, which row a token belongs to.
Batch = dict[str, np.ndarray]


class Batches(Planned):
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
        max_length: the limit of `encode`: no batch is padded to more tokens.

    Raises:
        ValueError: when there is no example or one of more tokens than ``max_length``, or no batch
            can be as small.

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
        max_length: int | None = None,
    ):
        self.examples = examples if isinstance(examples, Examples) else list(examples)
        sizes = ((len(tokens), len(answers)) for tokens, answers in examples)
        lengths, self._answers = np.fromiter(sizes, np.dtype((np.int32, 2)), len(examples)).T
        super().__init__(
            Plan(
                lengths,
                batch_size=batch_size,
                seed=seed,
                shapes=shapes,
                shuffle=shuffle,
                max_length=max_length,
            )
        )
        self.lengths = self._plan.lengths
        self.answers = self._answer_sizes()

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The (length, answers) of each shape that a batch may have."""
        return list(zip(self.lengths, self.answers, strict=True))

    def part(self, step: int, start: int, stop: int) -> Batch:
        """The rows ``start:stop`` of the step's batch, as they stand there."""
        bucket, rows = self._plan(step)
        length, answers = self.lengths[bucket], self.answers[bucket]
        count = stop - start
        batch = {
            "tokens": np.zeros((count, length), np.int32),
            "positions": np.zeros((count, answers), np.int32),
            "labels": np.zeros((count, answers), np.int32),
            "weights": np.zeros((count, answers), np.float32),
        }
        for place, row in enumerate(rows[start:stop]):
            tokens, positions = (np.asarray(part, np.int32) for part in self.examples[row])
            batch["tokens"][place, : len(tokens)] = tokens
            batch["positions"][place, : len(positions)] = positions
            batch["labels"][place, : len(positions)] = tokens[positions + 1]
            batch["weights"][place, : len(positions)] = 1
        return batch

    def _trained(self, rows: np.ndarray) -> int:
        return int(self._answers[rows].sum())

    def _answer_sizes(self) -> list[int]:
        """Places for answers in each bucket: enough for its own rows and those of shorter ones."""
        most = [
            round_up(int(self._answers[self._plan.bucket == bucket].max(initial=0)), 8)
            for bucket in range(len(self.lengths))
        ]
        return list(itertools.accumulate(most, max))
