"""How a script's ``train`` is run: settings first, one line for whatever goes wrong, a status."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from jlora import _words, compiled, trainer
from jlora.finetune._dry_run import advice, dry_run, preview
from jlora.finetune._ending import Ending
from jlora.finetune._flags import Asked, parse
from jlora.finetune._parent import status_of_child
from jlora.finetune._settle import require, settled

_OF_OTHERS = re.compile(r"Gloo|NCCL|oordination service")  # in an error that is their doing


class StoppedError(Exception):
    """A run that ended early.

    Args:
        message: the line to print.
        status: the exit status.
        goes_on: whether the line ends with the command that goes on with the run.
    """

    def __init__(self, message: str, status: int = 1, *, goes_on: bool = False):
        super().__init__(message)
        self.status = status
        self.goes_on = goes_on


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

    ending: Ending | None = None  # of several processes

    def fail(problem: object, status: int, why: str = "") -> int:
        if ending is not None:
            ending.speak()
        print(f"{name}: {problem}", file=sys.stderr, flush=True)
        if ending is not None:
            ending.end(status, why)
        return status

    with contextlib.ExitStack() as stack:
        run: trainer.Run | None = None
        asked, before = None, b""
        try:
            asked = parse(argv, description=description)
            if asked.dry_run or asked.preview:
                if asked.resume:
                    raise ValueError("--resume goes on with a run: leave --dry-run, --preview out")
                require(asked.settings)
                (dry_run if asked.dry_run else preview)(asked.settings)
                return 0
            if asked.of_several:
                again = go_on(asked.settings.folder, command)
                tell = lambda line, again=again: fail(f"{line}. {again}", 1)  # noqa: E731
                if (status := status_of_child(argv, tell)) is not None:
                    return status
                _start(asked)
                ending = Ending(lambda line: fail(line, 1))
                _agree_on_versions()
                if jax.process_index():  # the first one prints
                    nowhere = stack.enter_context(open(os.devnull, "w"))
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(_interrupted_by_sigterm())
            run = trainer.Run(asked.settings.folder)
            stack.enter_context(run.locked())
            before = _begun(run)
            asked = settled(asked, argv, run)
            run = trainer.Run(run.directory, keep=asked.settings.keep)
            compiled.keep()
            if asked.settings.precision:
                stack.enter_context(jax.default_matmul_precision(asked.settings.precision))
            train(asked, run)
        except (Exception, KeyboardInterrupt) as error:
            _wait_for_verdict(error)
            try:
                told, status = _told(error, asked)
            except Exception:
                if ending is not None:
                    ending.speak()
                    traceback.print_exc()
                    ending.end(1, _words.one_line(f"{type(error).__name__}: {error}", 200))
                raise
            # what stops one stops all, and each says so itself
            why = "" if isinstance(error, StoppedError) else told
            if run is None or asked is None or not (asked.resume or _begun(run) != before):
                return fail(told, status, why)  # the run had not begun
            if isinstance(error, OSError):
                told, status = f"{told}. What was saved before is whole", 1
            if _goes_on(error):
                told = f"{told}. {go_on(run.directory, command)}"
            return fail(told, status, why)
        if ending is not None:
            ending.over()
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes, {trainer.peak_memory()}")
    return 0


def go_on(folder: str | Path, command: str) -> str:
    """The command that resumes the run."""
    return f"Go on with: {command} --out {shlex.quote(str(folder))} --resume"


def _start(asked: Asked) -> None:
    """Joins the other processes."""
    trainer.start_processes(asked.coordinator or None, asked.processes, asked.process_id)


def _agree_on_versions() -> None:
    versions = {each: importlib.metadata.version(each) for each in ("jax", "jaxlib", "jlora")}
    trainer.agreed("versions", versions)


def _wait_for_verdict(error: BaseException) -> None:
    """Where others are gone a collective fails first: they say why, or JAX's runtime, or nobody."""
    of_runtime = isinstance(error, jax.errors.JaxRuntimeError) and not trainer.ran_out(error)
    if (of_runtime or _OF_OTHERS.search(str(error))) and jax.distributed.is_initialized():
        time.sleep(45)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Where no loop saves first, SIGTERM ends the run as Ctrl-C does: in one line."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number))

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _begun(run: trainer.Run) -> bytes:
    """What the folder's run was begun with; nothing where there is none."""
    path = run.directory / "run.json"
    return path.read_bytes() if path.exists() else b""


def _told(error: BaseException, asked: Asked | None) -> tuple[str, int]:
    """What a person is told of an error, and the exit status; others go on as they are."""
    if isinstance(error, StoppedError):
        return str(error), error.status
    if isinstance(error, (ValueError, OSError)):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        number = error.args[0] if error.args else signal.SIGINT
        its = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
        return its, 128 + number
    if trainer.ran_out(error) and asked is not None:
        fits = ""
        with contextlib.suppress(Exception):  # rows that come once, say
            fits = advice(asked.settings)
        return f"memory ran out. {fits}", 1
    raise error


def _goes_on(error: BaseException) -> bool:
    """Whether the run can be resumed as it is."""
    if isinstance(error, StoppedError):
        return error.goes_on
    return isinstance(error, (OSError, KeyboardInterrupt))
