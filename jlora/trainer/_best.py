"""Which evaluation was the best so far, and whether to wait for a better one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from jlora import _words

_KEPT = ("watch", "direction", "value", "step", "waited")
DIRECTIONS = ("lower", "higher")


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far, by one number. Each evaluation gives a new one, `after` it.

    A number is better when it is strictly lower, or strictly higher, than all before; one that is
    not finite never is.

    Raises:
        ValueError: when the direction is neither, or the patience is below 1.

    Example:
        >>> import jlora
        >>> best = jlora.trainer.Best("loss", "lower", patience=2)
        >>> for step, loss in ((10, 0.9), (20, 0.7), (30, 0.7), (40, float("nan"))):
        ...     best = best.after(step, {"loss": loss})
        ...     print(step, best.improved, best.stop)
        10 True False
        20 True False
        30 False False
        40 False True
        >>> best.step, best.value
        (20, 0.7)
    """

    watch: str  # the number's name
    direction: str  # "lower" or "higher": which is better
    _: dataclasses.KW_ONLY
    patience: int | None = None  # so many evaluations in a row may be no better; None: any number
    value: float | None = None  # the best so far
    step: int | None = None  # and when it was reached
    waited: int = 0  # evaluations since then
    improved: bool = False  # whether the last evaluation was the best so far

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise ValueError(
                f"direction of {self.watch} is {self.direction!r}: expected lower or higher"
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(
                f"patience is {self.patience}: expected at least 1 evaluation, or None"
            )

    @property
    def stop(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience

    def check(self, names: Collection[str], *, evaluations: int) -> None:
        """Raises, before any training, where this can't work.

        Args:
            names: of the numbers that evaluation gives.
            evaluations: how many there will be in the whole run.

        Raises:
            ValueError: when the number that is watched is not among them, or the evaluations are
                too few for the patience to be used up.
        """
        problems = []
        if self.watch not in names:
            hint = _words.did_you_mean(self.watch, names)
            given = f"one of {', '.join(sorted(names))}" if names else "an evaluation that gives it"
            problems.append(f"nothing gives the number {self.watch!r}{hint}: expected {given}")
        if self.patience is not None and evaluations <= self.patience:
            problems.append(
                f"a patience of {self.patience} evaluations is never used up in {evaluations}: "
                f"expected more evaluations, or a patience below {max(evaluations, 1)}"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def after(self, step: int, scores: Mapping[str, float]) -> Best:
        """What is the best after this evaluation too.

        Args:
            step: updates done.
            scores: the numbers of the evaluation.

        Raises:
            ValueError: when the number that is watched is not among them.
        """
        if self.watch not in scores:
            raise ValueError(
                f"the evaluation after step {step} lacks {self.watch!r}: it gave "
                f"{', '.join(sorted(scores)) or 'nothing'}"
            )
        value = float(scores[self.watch])
        if not self._is_better(value):
            return dataclasses.replace(self, waited=self.waited + 1, improved=False)
        return dataclasses.replace(self, value=value, step=step, waited=0, improved=True)

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, for JSON: nothing that settings say anew."""
        return {name: getattr(self, name) for name in _KEPT}

    def resumed(self, record: Mapping[str, Any]) -> Best:
        """This one with what was reached before, from `record`; the patience may be another.

        Args:
            record: from `record`.

        Raises:
            ValueError: when it is of another number or direction.
        """
        was, now = ((x["watch"], x["direction"]) for x in (record, self.record()))
        if was != now:
            raise ValueError(
                f"the best so far is of {' '.join(was)}, now {' '.join(now)} is wanted: expected "
                "the same"
            )
        return dataclasses.replace(self, **{name: record[name] for name in _KEPT})

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.value is None:
            return True
        return value < self.value if self.direction == "lower" else value > self.value
