"""Weights & Biases: a run there for each run here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _requires
from jlora.trainer._loggers._identity import identity

PACKAGE = "wandb"


class Wandb:
    """Writes to the project that WANDB_PROJECT names, or "jlora"; its files go to ``folder``."""

    def __init__(self, folder: Path, *, resume_at: int, settings: Mapping[str, Any], name: str):
        package = _requires.requires(PACKAGE)
        self._run = package.init(
            project=os.environ.get("WANDB_PROJECT", "jlora"),
            dir=folder,
            id=identity(folder, PACKAGE, resume_at=resume_at),
            name=name,
            config=dict(settings),
            resume="allow",
            settings=package.Settings(console="off"),  # the terminal is the progress bar's
        )
        # Its own count of steps only grows, so after a resume it would drop those taken anew.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()
