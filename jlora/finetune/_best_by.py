"""By which number of a measurement a run's best adapter is chosen, and whether that can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jlora import _words, tasks, trainer
from jlora.finetune._settings import Settings

_LOSS = {"loss": "lower"}


def best(settings: Settings, task: tasks.Task | type[tasks.Task]) -> trainer.Best:
    """What is watched during training, before any measurement.

    Args:
        settings: of the run: ``best_by`` names the number, ``patience`` goes by it too.
        task: says which of its scores can be watched, and which way they are better.

    Raises:
        ValueError: when the task has no such score.
    """
    known = {**_LOSS, **task.measures}
    if settings.best_by not in known:
        raise ValueError(_unknown(settings.best_by, known))
    direction = known[settings.best_by]
    return trainer.Best(settings.best_by, direction, patience=settings.patience or None)


def check_measured(best: trainer.Best, scores: Mapping[str, Any]) -> None:
    """Raises a ValueError unless the number that is watched is among those of a measurement.

    Args:
        best: from `best`.
        scores: the measurement before training: what it lacks, later ones lack too.
    """
    numbers = sorted(name for name, value in scores.items() if isinstance(value, float))
    if best.watch not in numbers:
        raise ValueError(
            f"--best-by {best.watch}: the held-out rows give no such number. Expected rows that "
            f"ask for an answer, or one of {', '.join(numbers)}"
        )


def problems(settings: Settings, task: type[tasks.Task]) -> Iterator[str]:
    """What of the settings can't be, for this task, one sentence each."""
    named = settings.best_by
    known = {**_LOSS, **task.measures}
    if named not in known:
        yield _unknown(named, known)
    elif named not in _LOSS:
        answered = settings.eval_answers or task.quick_scores
        lacking = [
            *(() if settings.eval_every else ("--eval-every",)),
            *(() if answered else ("--eval-answers",)),
        ]
        if lacking:
            yield f"--best-by {named} is measured during training: give {' and '.join(lacking)} too"


def _unknown(named: str, known: Mapping[str, str]) -> str:
    hint = _words.did_you_mean(named, known)
    return f"--best-by is {named!r}{hint}: expected {' or '.join(known)}"
