"""What becomes of a run whose loss or gradient is no number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jlora import trainer
from jlora.finetune._main import StoppedError
from jlora.finetune._settings import Settings

AT_MOST = 10  # batches in a row


class NonFinite:
    """Writes the rows of a batch down whose loss or gradient is no number, and ends the run or not.

    The step leaves adapter and optimizer as they were, so that the run can go on or stop there.

    Args:
        settings: of the run.
        run: whose folder gets ``not-finite-N.json``.
        texts: ``number of the batch, from 0 -> its rows as texts``.
        save: keeps the state as that of so many updates.
    """

    def __init__(
        self,
        settings: Settings,
        run: trainer.Run,
        texts: Callable[[int], Sequence[str]],
        save: Callable[[int], Any],
    ):
        self._settings = settings
        self._run = run
        self._texts = texts
        self._save = save
        self._streak = 0

    def check(self, number: int, values: Mapping[str, float], finite: bool) -> str | None:
        """A line to print where this update was left out, None where it was made.

        Args:
            number: of the update, from 1.
            values: its ``loss`` and ``grad_norm``.
            finite: whether both are numbers.

        Raises:
            StoppedError: where the settings say so, or after ten in a row.
        """
        if finite:
            self._streak = 0
            return None
        self._streak += 1
        said = {name: str(values[name]) for name in ("loss", "grad_norm")}
        name = f"not-finite-{number}"
        self._run.record(name, {"step": number, **said, "rows": list(self._texts(number - 1))})
        where = self._run.directory / f"{name}.json"
        told = f"the loss is {said['loss']} and the gradient's norm {said['grad_norm']}"
        if self._settings.on_nonfinite == "skip" and self._streak < AT_MOST:
            return f"step {number}: {told}: skipped, see {where}"
        self._save(number - self._streak)
        last = self._run.latest_step
        streak = f", for {self._streak} steps in a row" if self._streak > 1 else ""
        raise StoppedError(
            f"at step {number} {told}{streak}, so training stopped; {where} holds the rows. "
            + (f"The checkpoint of step {last} in {self._run.directory} is good. " if last else "")
            + f"Try a --learning-rate below {self._settings.learning_rate}, or --on-nonfinite skip"
        )
