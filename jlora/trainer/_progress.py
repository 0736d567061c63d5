"""How far a run is, for the one who watches: a bar in a terminal or notebook, lines in a file."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax

from jlora import _requires
from jlora.trainer._loop import Update

_BAR_EVERY = 0.2  # seconds: a bar that moves, and steps of a millisecond that don't wait for it


class Progress:
    """What `progress` gives: `show` takes the numbers of an update, `say` a line to be read.

    It is a callback for `fit` too, and then shows the loss.

    Args:
        steps: updates in all.
        every: seconds between two times that something is shown.
        emit: shows the numbers after so many updates.
        say: writes a line.

    Example:
        >>> import jlora
        >>> show = lambda number, values: print(number, values)
        >>> shown = jlora.trainer.Progress(9, every=0, emit=show, say=print)
        >>> shown.show(3, {"loss": 0.25})
        3 {'loss': 0.25}
        >>> shown.say("saved")
        saved
    """

    def __init__(
        self,
        steps: int,
        *,
        every: float,
        emit: Callable[[int, Mapping[str, float]], Any],
        say: Callable[[str], Any],
    ):
        self.steps = steps
        self.every = every
        self._emit = emit
        self._say = say
        self._shown: float | None = None  # when

    def show(self, number: int, values: Mapping[str, float]) -> None:
        """Shows how far it is and these numbers, if it is time or the last update."""
        if self._is_due(number):
            self._emit(number, values)

    def say(self, line: str) -> None:
        """Writes a line; where there is a bar, above it."""
        self._say(line)

    def __call__(self, update: Update) -> None:
        """Shows the loss of the update, which waits for the device only when it is shown."""
        if self._is_due(update.number):
            self._emit(update.number, {"loss": float(update.metrics["loss"])})

    def _is_due(self, number: int) -> bool:
        now = time.monotonic()
        due = self._shown is None or now - self._shown >= self.every or number == self.steps
        if due:
            self._shown = now
        return due


@contextlib.contextmanager
def progress(
    steps: int, *, start: int = 0, every: float = 30.0, file: TextIO | None = None
) -> Iterator[Progress]:
    """Shows how far a run is: in a terminal or a notebook a bar, in a file a line now and then.

    A line has the step, the numbers and the time left, and no control characters. On many hosts
    the first process alone shows anything.

    Args:
        steps: updates in all, those already done included.
        start: updates already done.
        every: seconds between two lines in a file; the first and the last update have one.
        file: where to; standard error if it is not given.

    Raises:
        ValueError: when there is a terminal or notebook and tqdm is not installed.

    Example:
        >>> import sys
        >>> import jlora
        >>> with jlora.trainer.progress(480, file=sys.stdout) as bar:
        ...     for number in range(1, 481):
        ...         bar.show(number, {"loss": 0.53, "tokens/s": 110})
        step 1 of 480, loss 0.53, tokens/s 110
        step 480 of 480, loss 0.53, tokens/s 110, 0:00 left
    """
    notebook = file is None and "ipykernel" in sys.modules
    to: TextIO = file or sys.stderr
    if jax.process_index():
        yield Progress(steps, every=every, emit=lambda *_: None, say=lambda _: None)
    elif not (notebook or _has_room(to)):
        write = lambda line: print(line, file=to, flush=True)  # noqa: E731
        yield Progress(steps, every=every, emit=_lines(steps, write), say=write)
    else:
        tqdm = _requires.requires("tqdm.auto").tqdm
        looks = {"unit": "step", "dynamic_ncols": True, "mininterval": 0, "miniters": 1}
        with tqdm(total=steps, initial=start, file=to, **looks) as bar:

            def emit(number: int, values: Mapping[str, float]) -> None:
                told = {name: _short(value) for name, value in values.items()}
                bar.set_postfix(told, refresh=False)
                bar.update(number - bar.n)

            say = lambda line: bar.write(line, file=to)  # noqa: E731
            yield Progress(steps, every=_BAR_EVERY, emit=emit, say=say)


def _has_room(file: TextIO) -> bool:
    """Whether it is a terminal in which a bar can be seen: one without a size shows none."""
    return file.isatty() and os.get_terminal_size(file.fileno()).columns > 0


def _lines(steps: int, write: Callable[[str], Any]) -> Callable[[int, Mapping[str, float]], None]:
    """Writes the numbers and the time left, reckoned from the first update that it was told of."""
    first: tuple[int, float] | None = None  # the update before which the step was compiled

    def emit(number: int, values: Mapping[str, float]) -> None:
        nonlocal first
        told = [f"step {number} of {steps}"]
        told += [f"{name} {_short(value)}" for name, value in values.items()]
        now = time.monotonic()
        if first is None:
            first = number, now
        else:
            each = (now - first[1]) / max(1, number - first[0])
            told.append(f"{_duration(each * (steps - number))} left")
        write(", ".join(told))

    return emit


def _short(value: float) -> str:
    """Three digits, or all those before the point."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e9 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    """``6:12``, ``1:02:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
