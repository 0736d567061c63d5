"""Texts with a label each, for a head for classification: their tokens, and batches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jlora import _words
from jlora.data._batches import Batch
from jlora.data._examples import Collected, Examples
from jlora.data._labelled_rows import name_of, row_of
from jlora.data._messages import Notes
from jlora.data._plan import Plan, Planned


class Frames(Protocol):
    """What `encode_labelled` asks of a tokenizer."""

    def framed(
        self, text: str, second: str | None = None, *, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """The tokens of a text or a pair, and of which of the two each is."""
        ...


class Labelled(NamedTuple):
    """One text or pair as the model reads it, and its label.

    Example:
        >>> from jlora.data import Labelled
        >>> Labelled(tokens=[2, 7, 3], types=[0, 0, 0], label=1).label
        1
    """

    tokens: list[int]
    types: list[int]  # 1 for tokens of a second text
    label: int


@dataclasses.dataclass(frozen=True)
class LabelReport:
    """What became of the rows.

    Example:
        >>> from jlora.data import LabelReport
        >>> print(LabelReport(rows={"no": 6, "yes": 4}, cut=2, max_length=256))
        10 rows (no: 6, yes: 4), 2 longer than 256 tokens and cut
    """

    rows: Mapping[str, int]  # of each label
    cut: int  # longer than the limit, and read without their end
    max_length: int

    def __str__(self) -> str:
        each = _words.named((f"{label}: {count}" for label, count in self.rows.items()), 12)
        rows = f"{sum(self.rows.values())} rows ({each})"
        if not self.cut:
            return f"{rows}, none longer than {self.max_length} tokens"
        return f"{rows}, {self.cut} longer than {self.max_length} tokens and cut"


def encode_labelled(
    rows: Collection[Mapping[str, Any]],
    tokenizer: Frames,
    *,
    labels: Sequence[str],
    max_length: int,
    folder: str | Path | None = None,
) -> tuple[Examples[Labelled], LabelReport]:
    """The rows as tokens within the tokenizer's own frame, and a report of what was cut.

    Args:
        rows: from `read_labelled` or `open_labelled`.
        tokenizer: a model's.
        labels: their names, in the order of the model's scores. A row's label is one of them, or a
            number that says which, where none has that number for a name.
        max_length: the most tokens; a longer text loses its end, of two texts the longer one first.
        folder: for the tokens once they are more than some 100 MB; in memory without one.

    Raises:
        ValueError: naming the row without a text or with a label that is none of these; when there
            are fewer than two labels, one is there twice, or there are no rows.

    Example:
        >>> import jlora
        >>> class Letters:  # stands for `jlora.models.Tokenizer`
        ...     def framed(self, text, second=None, *, max_length=None):
        ...         tokens = list(text.encode())[:max_length]
        ...         return tokens, [0] * len(tokens)
        >>> rows = [{"text": "no!", "label": "bad"}, {"text": "so", "label": "good"}]
        >>> examples, report = jlora.data.encode_labelled(
        ...     rows, Letters(), labels=("good", "bad"), max_length=2
        ... )
        >>> [example.label for example in examples], bytes(examples[0].tokens)
        ([1, 0], b'no')
        >>> print(report)
        2 rows (good: 1, bad: 1), 1 longer than 2 tokens and cut
    """
    labels = tuple(labels)
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"labels are {labels}: expected at least two, each once")
    if not rows:
        raise ValueError("there are no rows")
    numbers = {name: number for number, name in enumerate(labels)}
    counts = dict.fromkeys(labels, 0)
    examples = Collected(Labelled, folder)
    problems: list[str] = []
    cut = 0
    for number, row in enumerate(rows, start=1):
        try:
            row = row_of(row, {}, Notes())
            label = _number(row["label"], numbers)
            texts = [row[name] for name in ("text", "second") if name in row]
            tokens, types = tokenizer.framed(*texts)
            if len(tokens) > max_length:
                tokens, types = tokenizer.framed(*texts, max_length=max_length)
                cut += 1
            if not tokens:
                raise ValueError("the model's tokenizer makes no token of the text")
        except ValueError as error:
            problems.append(f"row {number}: {error}")
            continue
        examples.append(Labelled(tokens, types, label))
        counts[labels[label]] += 1
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(rows)} rows can't be used:{_words.first_few(problems, 5)}"
        )
    return examples.whole(), LabelReport(counts, cut, max_length)


class LabelledBatches(Planned):
    """The batches of texts with labels: ``batches(step)``, planned as `Batches` are.

    Each is ``tokens``, ``mask`` and ``types`` (batch, length) int32, ``labels`` (batch,) int32 and
    ``weights`` (batch,) float32, 0 for a row that only fills the batch.

    Args:
        examples: from `encode_labelled`.
        batch_size: rows in a batch.
        seed: of the order.
        shapes: at most so many lengths.
        shuffle: False keeps the rows' order within each length, for evaluation.
        max_length: the limit of `encode_labelled`: no batch is padded to more tokens.

    Raises:
        ValueError: when there is no example or one of more tokens than ``max_length``, or no batch
            can be as small.

    Example:
        >>> from jlora.data import Labelled, LabelledBatches
        >>> examples = [Labelled([5, 3, 7], [0, 0, 0], 1)] * 5
        >>> batches = LabelledBatches(examples, batch_size=4)
        >>> batches.per_epoch, batches.shapes
        (2, [8])
        >>> {name: array.shape for name, array in batches(1).items()}["tokens"]
        (4, 8)
    """

    def __init__(
        self,
        examples: Sequence[Labelled],
        *,
        batch_size: int,
        seed: int = 0,
        shapes: int = 3,
        shuffle: bool = True,
        max_length: int | None = None,
    ):
        self.examples = examples if isinstance(examples, Examples) else list(examples)
        lengths = (len(each.tokens) for each in self.examples)
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

    @property
    def shapes(self) -> list[int]:
        """The lengths that a batch may have."""
        return list(self._plan.lengths)

    def part(self, step: int, start: int, stop: int) -> Batch:
        """The rows ``start:stop`` of the step's batch, as they stand there."""
        bucket, rows = self._plan(step)
        shape = (stop - start, self._plan.lengths[bucket])
        batch: Batch = {
            **{name: np.zeros(shape, np.int32) for name in ("tokens", "mask", "types")},
            "labels": np.zeros(stop - start, np.int32),
            "weights": np.zeros(stop - start, np.float32),
        }
        for place, row in enumerate(rows[start:stop]):
            tokens, types, label = self.examples[row]
            batch["tokens"][place, : len(tokens)] = tokens
            batch["mask"][place, : len(tokens)] = 1
            batch["types"][place, : len(tokens)] = types
            batch["labels"][place] = label
            batch["weights"][place] = 1
        return batch

    def _trained(self, rows: np.ndarray) -> int:
        return len(rows)


def _number(label: Any, numbers: Mapping[str, int]) -> int:
    """Which of the labels it is.

    Raises:
        ValueError: when it is none of them.
    """
    if (name := name_of(label)) in numbers:
        return numbers[name]
    if not isinstance(label, str) and name.isdigit() and int(name) < len(numbers):
        return int(name)
    nearest = _words.named(numbers, 12)
    raise ValueError(f"the label {_words.one_line(repr(label), 60)} is none of {nearest}")
