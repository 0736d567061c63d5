"""Batches of sequences that short rows share, in one shape: less padding, one compiled program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jlora import _words
from jlora._requires import requires
from jlora.data._batches import Batch
from jlora.data._examples import Examples
from jlora.data._plan import round_up
from jlora.data._turn import Example

_OPEN = 1 << 21  # tokens of the sequences that are filled side by side
_MOST_OPEN = 1024  # of these sequences


class PackedBatches:
    """The training batches, as `Batches` gives them, of rows that share sequences.

    ``batches(step)`` depends on the arguments and on nothing else. Which rows share a sequence is
    decided once, for all rows: each, in an order of the seed's, goes where it leaves the least room
    (best fit). Each epoch visits every sequence once, in an order of its own. The batch's array
    ``segments`` says which row each token belongs to: 1 for a sequence's first, then 2, and so on,
    0 for padding. `jlora.models.answer_loss` keeps rows apart by it. Labels are made before rows
    are put together, so that none crosses from one to the next.

    Needs the package ``grain``, whose orders and packing these are.

    Args:
        examples: from `encode`.
        batch_size: sequences in a batch.
        length: of a sequence, in tokens: of the longest row at least.
        seed: of the packing and the order.

    Raises:
        ValueError: when there is no example, when some are longer than ``length`` or have no answer
            (each such is named), or when no batch can be as small.

    Example:
        >>> from jlora.data import Example, PackedBatches
        >>> examples = [Example(tokens=[5, 3, 7, 1], answers=[1, 2])] * 10
        >>> batches = PackedBatches(examples, batch_size=2, length=9, seed=0)
        >>> batches.per_epoch, batches.shapes  # five sequences of two rows
        (3, [(9, 8)])
        >>> batch = batches(0)
        >>> batch["segments"][0].tolist()
        [1, 1, 1, 1, 2, 2, 2, 2, 0]
        >>> batches.tokens(0), batch["weights"].sum().item()  # of the batch's four rows
        (16, 8.0)
    """

    def __init__(self, examples: Sequence[Example], *, batch_size: int, length: int, seed: int = 0):
        if not examples:
            raise ValueError("no examples: expected at least one")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        self.examples = examples if isinstance(examples, Examples) else list(examples)
        self.batch_size, self.length, self.seed = batch_size, length, seed
        sizes = ((len(tokens), len(answers)) for tokens, answers in examples)
        self._sizes: np.ndarray = np.fromiter(sizes, np.dtype((np.int32, 2)), len(examples))
        self._check()
        grain = requires("grain")
        self._sequences = _packed(grain, self._sizes[:, 0], length, seed)
        self._order = grain.MapDataset.range(len(self._sequences)).shuffle(seed=seed % 2**32)
        most = max(int(self._sizes[rows, 1].sum()) for rows in self._sequences)
        self.answers = round_up(most, 8)

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch: the same number in each."""
        return -(-len(self._sequences) // self.batch_size)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The (length, answers) of the one shape that batches have."""
        return [(self.length, self.answers)]

    def __call__(self, step: int) -> Batch:
        """The batch of the step, counted from 0."""
        return self.part(step, 0, self.batch_size)

    def part(self, step: int, start: int, stop: int) -> Batch:
        """The sequences ``start:stop`` of the step's batch, as they stand there."""
        count = stop - start
        batch = {
            "tokens": np.zeros((count, self.length), np.int32),
            "segments": np.zeros((count, self.length), np.int32),
            "positions": np.zeros((count, self.answers), np.int32),
            "labels": np.zeros((count, self.answers), np.int32),
            "weights": np.zeros((count, self.answers), np.float32),
        }
        for place, rows in enumerate(self._of(step)[start:stop]):
            begins = first = 0
            for segment, row in enumerate(rows, start=1):
                tokens, answers = (np.asarray(part, np.int32) for part in self.examples[row])
                end, last = begins + len(tokens), first + len(answers)
                batch["tokens"][place, begins:end] = tokens
                batch["segments"][place, begins:end] = segment
                batch["positions"][place, first:last] = begins + answers
                batch["labels"][place, first:last] = tokens[answers + 1]
                batch["weights"][place, first:last] = 1
                begins, first = end, last
        return batch

    def rows(self, step: int) -> list[int]:
        """Which examples make up the step's batch, in its order."""
        return np.concatenate(self._of(step)).tolist()

    def tokens(self, step: int) -> int:
        """How many tokens the step's batch holds, padding left out."""
        return self.counts(step)["tokens"]

    def counts(self, step: int) -> dict[str, int]:
        """Its ``tokens``, ``tokens_trained``, and with padding ``tokens_processed``."""
        tokens, trained = self._sizes[self.rows(step)].sum(axis=0).tolist()
        return {
            "tokens": tokens,
            "tokens_trained": trained,
            "tokens_processed": self.batch_size * self.length,
        }

    def _of(self, step: int) -> list[np.ndarray]:
        """The rows of each sequence of the step's batch; the last of an epoch may have fewer."""
        epoch, index = divmod(step, self.per_epoch)
        count = len(self._sequences)
        places = range(count)[index * self.batch_size :][: self.batch_size]
        return [self._sequences[self._order[epoch * count + place]] for place in places]

    def _check(self) -> None:
        problems = []
        for wrong, what in (
            (self._sizes[:, 0] > self.length, f"longer than a sequence of {self.length} tokens"),
            (self._sizes[:, 1] == 0, "without an answer"),
        ):
            if len(found := np.flatnonzero(wrong)):
                these = _words.named([f"{row} ({self._sizes[row, 0]} tokens)" for row in found])
                problems.append(f"{len(found)} of {len(wrong)} examples are {what}: {these}")
        if problems:
            raise ValueError(
                f"{'; '.join(problems)}. `encode` cuts rows at its max_length and leaves out those "
                "without an answer"
            )


def _packed(grain: Any, lengths: np.ndarray, length: int, seed: int) -> list[np.ndarray]:
    """The rows of each sequence, by Grain's best fit over rows in an order of the seed's."""
    rows = (
        grain.MapDataset.range(len(lengths))
        .shuffle(seed=seed % 2**32)
        .map(lambda row: {"tokens": np.zeros(lengths[row], bool), "row": int(row)})
    )
    sequences = grain.experimental.BestFitPackIterDataset(
        rows.to_iter_dataset(grain.ReadOptions(num_threads=0)),
        length_struct={"tokens": length},
        num_packing_bins=min(_MOST_OPEN, max(1, _OPEN // length)),
        shuffle_bins=False,
        meta_features=("row",),
    )
    return [np.array(sequence["row"], np.int32) for sequence in sequences]
