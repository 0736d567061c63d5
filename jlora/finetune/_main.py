"""How a script's ``train`` is run: settings first, one line for whatever goes wrong, a status."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jlora import compiled, trainer
from jlora.finetune._dry_run import advice, dry_run, preview
from jlora.finetune._flags import Asked, parse
from jlora.finetune._settings import Settings, flag

# What may change when a run is resumed.
FREE = {
    "out",
    "steps",
    "epochs",
    "checkpoint_every",
    "keep",
    "attention",
    "save_as",
    "on_nonfinite",
    "accumulate",
    "eval_every",
    "eval_answers",
    "patience",
    "log",
}
_FOLDER_FLAGS = (
    "--out chooses another folder, --overwrite replaces what is there, --resume goes on with a run"
)


class StoppedError(Exception):
    """A run that ended early, with the line to print and the exit status."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def main(
    train: Callable[[Asked, trainer.Run], None],
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
    command: str = "python train.py",
) -> int:
    """The exit status of ``train`` under these flags: 0, 2 for bad input, 1 for a run that broke.

    Whatever is wrong with flags, files or the disk is one line on stderr. The run's folder is held
    by this process alone until ``train`` ends.

    Args:
        train: given what was asked for and the run's folder; it does the whole run.
        argv: the flags; the process's own if None.
        description: what --help begins with.
        command: how a person called it.

    Returns:
        0; 2; 1; 128 and the number of the signal that stopped it; or what `StoppedError` says.
    """
    began = time.perf_counter()
    name = command.split()[-1]

    def fail(problem: object, status: int) -> int:
        print(f"{name}: {problem}", file=sys.stderr)
        return status

    with contextlib.ExitStack() as stack:
        run = None
        try:
            asked = parse(argv, description=description)
            if asked.dry_run or asked.preview:
                require(asked.settings)
                (dry_run if asked.dry_run else preview)(asked.settings)
                return 0
            run = trainer.Run(asked.settings.folder, keep=asked.settings.keep)
            stack.enter_context(run.locked())
            asked = settled(asked, argv, run)
            compiled.keep()
            if asked.settings.precision:
                stack.enter_context(jax.default_matmul_precision(asked.settings.precision))
            train(asked, run)
        except StoppedError as stopped:
            return fail(stopped, stopped.status)
        except ValueError as error:
            return fail(error, 2)
        except OSError as error:
            if run is None or not run.begun:
                return fail(error, 2)
            return fail(f"{error}. What was saved before is whole. {go_on(run, command)}", 1)
        except KeyboardInterrupt:
            begun = run is not None and run.begun
            next_step = go_on(run, command) if begun else "The run had not begun"
            return fail(f"interrupted. {next_step}", 130)
        except Exception as error:
            if not trainer.ran_out(error):
                raise
            return fail(f"memory ran out. {advice(asked.settings)}", 1)
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes, {trainer.peak_memory()}")
    return 0


def settled(asked: Asked, argv: Sequence[str] | None, run: trainer.Run) -> Asked:
    """What was asked for, its settings checked; on resuming those that the run was begun with.

    Raises:
        ValueError: when they can't be, when the folder holds something else, or when a resumed run
            was begun with others: all of them are named.
    """
    require(asked.settings)
    if asked.resume and asked.overwrite:
        raise ValueError("--resume and --overwrite exclude each other: choose one")
    try:
        if not asked.resume:
            run.claim(overwrite=asked.overwrite)
            today = asked.settings.date or datetime.date.today().isoformat()
            return dataclasses.replace(
                asked, settings=dataclasses.replace(asked.settings, date=today)
            )
        begun = run.settings["settings"]
    except ValueError as error:
        raise ValueError(f"{error}. {_FOLDER_FLAGS}") from None
    base = Settings.from_flat(begun)
    asked = _one_length(parse(argv, base=base), base)
    before, now = base.flat(), asked.settings.flat()
    changed = [
        f"{name} was {_shortened(before[name])}, now {_shortened(value)}"
        for name, value in now.items()
        if name not in FREE and _as_json(before[name]) != _as_json(value)
    ]
    if changed:
        raise ValueError(
            f"--resume: the run in {run.directory} was begun with other settings: "
            f"{'; '.join(changed)}. Leave these flags out, or choose another --out"
        )
    require(asked.settings)
    return asked


def require(settings: Settings) -> None:
    """Raises a ValueError that names all that can't be, unless the settings can."""
    if problems := list(settings.problems()):
        raise ValueError("; ".join(problems))


def _one_length(asked: Asked, base: Settings) -> Asked:
    """Of steps and epochs the one that was given anew."""
    its = asked.settings
    if its.steps is None or not its.epochs:
        return asked
    other = {"epochs": 0.0} if its.steps != base.steps else {"steps": None}
    return dataclasses.replace(asked, settings=dataclasses.replace(its, **other))


def go_on(run: Any, command: str = "python train.py") -> str:
    """The command that resumes the run."""
    return f"Go on with: {command} {flag('out')} {run.directory} --resume"


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _shortened(value: Any) -> str:
    return repr(value) if len(repr(value)) < 100 else f"{repr(value)[:100]}..."
