"""How long each part of a run takes."""

from __future__ import annotations

import time


class Phases:
    """The minutes of each part of a run, one after the other.

    Example:
        >>> from jlora import finetune
        >>> phases = finetune.Phases("loading")
        >>> phases.begin("training")
        >>> str(phases)
        'loading 0.0, training 0.0 minutes'
    """

    def __init__(self, first: str):
        self._began = [(first, time.perf_counter())]

    def begin(self, name: str) -> None:
        """Ends the part before and begins this one."""
        self._began.append((name, time.perf_counter()))

    def __str__(self) -> str:
        ends = [began for _, began in self._began[1:]] + [time.perf_counter()]
        minutes: dict[str, float] = {}
        for (name, began), end in zip(self._began, ends, strict=True):
            minutes[name] = minutes.get(name, 0.0) + (end - began) / 60
        return ", ".join(f"{name} {took:.1f}" for name, took in minutes.items()) + " minutes"
