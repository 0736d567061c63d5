"""How far a run is, for the one who watches: a bar in a terminal, lines in a file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax

from jlora import _requires
from jlora.trainer._loop import Update


class Progress:
    """What `progress` gives: called with each `Update`, told numbers by `show`, lines by `say`.

    Example:
        >>> import sys
        >>> import jlora
        >>> bar = jlora.trainer.Progress(lambda number, values: print(number, values), print)
        >>> bar.show(3, {"loss": 0.25})
        3 {'loss': 0.25}
        >>> bar.say("saved")
        saved
    """

    def __init__(
        self,
        show: Callable[[int, Callable[[], Mapping[str, float]]], Any],
        say: Callable[[str], Any],
    ):
        self._show = show
        self._say = say

    def show(self, number: int, values: Mapping[str, float]) -> None:
        """Shows the numbers that are known after so many updates."""
        self._show(number, lambda: values)

    def say(self, line: str) -> None:
        """Writes a line above the bar."""
        self._say(line)

    def __call__(self, update: Update) -> None:
        """Shows the loss of the update: a callback for `fit`."""
        self._show(update.number, lambda: {"loss": float(update.metrics["loss"])})
