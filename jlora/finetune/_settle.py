"""Which settings a run has: those asked for, or on resuming those that it was begun with."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from typing import Any

from jlora import _together, _words, tasks, trainer
from jlora.finetune import _best_by
from jlora.finetune._flags import Asked, parse
from jlora.finetune._settings import Settings, flag
from jlora.models._files._sampled_files import sampled_files

# What may change when a run is resumed.
FREE = {
    "model",  # its weights are held by their fingerprint, wherever they lie
    "out",
    "steps",
    "epochs",
    "checkpoint_every",
    "keep",
    "attention",
    "mesh",
    "save_as",
    "on_nonfinite",
    "accumulate",
    "eval_every",
    "eval_answers",
    "patience",
    "log",
}
_ANEW = "resumed"  # the record of those that were given anew
_FOLDER_FLAGS = (
    "--out chooses another folder, --overwrite replaces what is there, --resume goes on with a run"
)


def settled(asked: Asked, argv: Sequence[str] | None, run: trainer.Run) -> Asked:
    """What was asked for, its settings checked; on resuming those that the run was begun with.

    Raises:
        ValueError: when they can't be, when the folder holds something else, or when a resumed run
            was begun with others: all of them are named.
    """
    if asked.resume and asked.overwrite:
        raise ValueError("--resume and --overwrite exclude each other: choose one")
    if not asked.resume:
        require(asked.settings)
    try:
        if not asked.resume:
            trainer.by_first("claiming", lambda: run.claim(overwrite=asked.overwrite))
            date = lambda: datetime.date.today().isoformat()  # noqa: E731
            today = asked.settings.date or trainer.by_first("the day", date)
            asked = dataclasses.replace(
                asked, settings=dataclasses.replace(asked.settings, date=today)
            )
        else:
            begun = trainer.by_first(
                "resuming", lambda: run.settings["settings"] | (run.recorded(_ANEW) or {})
            )
    except ValueError as error:
        raise ValueError(f"{error}. {_FOLDER_FLAGS}") from None
    if not asked.resume:
        return _agreed(asked)
    base = Settings.from_flat(begun)
    asked = _one_length(parse(argv, base=base), base)
    before, now = base.flat(), asked.settings.flat()
    changed = [
        f"{name} was {_words.one_line(repr(before[name]), 100)}, now "
        f"{_words.one_line(repr(value), 100)}"
        for name, value in now.items()
        if name not in _free(base) and _as_json(before[name]) != _as_json(value)
    ]
    if changed:
        raise ValueError(
            f"--resume: the run in {run.directory} was begun with other settings: "
            f"{'; '.join(changed)}. Leave these flags out, or choose another --out"
        )
    require(asked.settings)
    return _agreed(asked)


def _agreed(asked: Asked) -> Asked:
    """The same, once all processes have these settings, and the same model under its name."""
    whole = {**asked.settings.flat(), "resume": asked.resume, "overwrite": asked.overwrite}
    trainer.agreed("settings", whole)
    if _together.client() is not None:
        model = asked.settings.model
        trainer.agreed(f"the files of {model}", sampled_files(model))
    return asked


def require(settings: Settings) -> None:
    """Raises a ValueError that names all that can't be, unless the settings can."""
    task, plain = tasks.find(settings.task_name), Settings()
    problems = [*settings.problems(), *_best_by.problems(settings, task)]
    for name in task.unread:
        if getattr(settings, name) != getattr(plain, name):
            problems.append(f"--task {settings.task_name} does not read {flag(name)}: leave it out")
    if problems:
        raise ValueError("; ".join(problems))


def _free(settings: Settings) -> set[str]:
    """The settings that may be given anew; parts of a batch have dropout masks of their own."""
    return FREE - {"accumulate"} if settings.lora.dropout else FREE


def _one_length(asked: Asked, base: Settings) -> Asked:
    """Of steps and epochs the one that was given anew."""
    its = asked.settings
    if its.steps is None or not its.epochs:
        return asked
    other = {"epochs": 0.0} if its.steps != base.steps else {"steps": None}
    return dataclasses.replace(asked, settings=dataclasses.replace(its, **other))


def keep_settings(run: trainer.Run, settings: Settings) -> None:
    """Keeps what was given anew on resuming, for the next time.

    Raises:
        OSError: when it can't be written.
    """
    flat = settings.flat()
    run.record(_ANEW, {name: flat[name] for name in sorted(FREE - {"out"})})


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
