"""What a run asks of that which it teaches."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any


class Task(abc.ABC):
    """What is taught: its rows, how a model sees them, the loss, and the scores.

    `Answers` does all but the rows for a model that answers; derive from this one where the model
    or the loss is another.

    Args:
        settings: the run's `jlora.finetune.Settings`.
        folder: where rows and tokens may be written; it may not exist.
        again: whether the run is resumed, so that what is in ``folder`` was written by it.

    Example:
        >>> import jlora
        >>> class Parrot(jlora.tasks.Answers):
        ...     def rows(self):
        ...         said = [{"role": "user", "content": "hello"},
        ...                 {"role": "assistant", "content": "hello"}]
        ...         return [said] * 20, [said]
        >>> rows, held_out = Parrot(None).rows()
        >>> len(rows), len(held_out)
        (20, 1)
    """

    #: Settings that mean nothing to the task, by name: to give one is an error.
    unread: tuple[str, ...] = ()
    #: Numbers of `scores` that the best adapter may be chosen by, and which is better: lower or
    #: higher.
    measures: Mapping[str, str] = MappingProxyType({})
    #: Whether `scores` takes about as long as the loss: each measurement on the way has them then.
    quick_scores: bool = False

    def __init__(self, settings: Any, folder: Path | None = None, *, again: bool = False):
        self.settings = settings
        self.folder = folder
        self.again = again

    @abc.abstractmethod
    def rows(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """(rows to train on, rows held out); the same each time it is called.

        Raises:
            ValueError: when there are none, or some can't be used.
        """

    @abc.abstractmethod
    def model(self, load: Callable[..., Any]) -> Any:
        """The model to adapt.

        Args:
            load: `jlora.models.load`; or what gives shapes in the place of arrays.

        Raises:
            ValueError: when it can't be loaded, or does not serve the task.
        """

    @abc.abstractmethod
    def measurable(self, held_out: Sequence[Any], model: Any) -> Sequence[Any]:
        """Those of the held-out rows that the model can be measured on.

        Raises:
            ValueError: when there are none.
        """

    @abc.abstractmethod
    def examples(
        self, rows: Collection[Any], model: Any, *, folder: Path | None = None
    ) -> tuple[Sequence[Any], Any]:
        """(the rows as the model sees them, a report to print).

        Args:
            rows: to train or to measure on.
            model: whose tokenizer it is.
            folder: where they may be written, so that memory does not hold them.
        """

    @abc.abstractmethod
    def batches(self, examples: Sequence[Any], *, shuffle: bool = True) -> Any:
        """``n -> batch`` of the examples, n from 0.

        A batch is a dict of arrays with its rows first, ``tokens`` (rows, length) among them. The
        function has ``per_epoch``, ``rows(n)`` and ``counts(n)``: the numbers ``tokens``,
        ``tokens_trained`` and, with padding, ``tokens_processed``.

        Args:
            examples: from `examples`.
            shuffle: False to measure: each example once in ``per_epoch`` batches.
        """

    def texts(self, model: Any, batches: Any, number: int) -> list[str]:
        """The rows of a batch as the model saw them, for a person to read."""
        rows = (batches.examples[row] for row in batches.rows(number))
        return [model.tokenizer.decode(row.tokens) for row in rows]

    @abc.abstractmethod
    def preview(self, model: Any, examples: Sequence[Any], count: int = 3) -> str:
        """The first rows as the model sees them, for a person to read."""

    @abc.abstractmethod
    def loss(self, model: Any, lora: Any = None) -> Callable[..., Any]:
        """``(params, batch) -> (sum, count)``: what training lowers is their quotient.

        Args:
            model: whose parameters are given.
            lora: the adapter, once there is one: it says what trains.
        """

    @abc.abstractmethod
    def scores(self, model: Any, held_out: Sequence[Any], *weights: Any) -> dict[str, Any]:
        """Further numbers than the loss, from 0 to 1, and whatever `shown` prints: JSON holds it.

        Args:
            model: the model.
            held_out: rows from `measurable`.
            weights: ``params``, or ``frozen, lora``.
        """

    @abc.abstractmethod
    def shown(self, held_out: Sequence[Any], scores: dict[str, dict[str, Any]]) -> str:
        """What is printed at the end: the scores ``before`` and ``after``, for a person to read."""

    def trains(self, model: Any) -> tuple[str, ...]:
        """Patterns of leaves that train whole, whatever the settings say: a fresh head."""
        return ()

    def about(self, held_out: Sequence[Any]) -> dict[str, Any]:
        """What is saved with the adapter for those who use it: JSON holds it."""
        return {}

    def command(self, adapter: Path, held_out: Sequence[Any]) -> str:
        """What a person may call next."""
        return f"python -m jlora info {adapter}"

    def same(
        self, model: Any, held_out: Sequence[Any], scores: dict[str, Any], *weights: Any
    ) -> str:
        """Whether weights give what the scores say, in words; nothing where none are kept.

        Args:
            model: the model.
            held_out: rows from `measurable`.
            scores: from `scores`.
            weights: ``params``, or ``frozen, lora`` beside a base that is kept in a few bits.
        """
        return ""
