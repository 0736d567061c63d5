"""Trackio: a dashboard on one's own machine or in a Hugging Face Space."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _requires
from jlora.trainer._loggers._identity import identity

PACKAGE = "trackio"


class Trackio:
    """Writes to the project that TRACKIO_PROJECT names, or "jlora", where Trackio keeps its own."""

    def __init__(self, folder: Path, *, resume_at: int, settings: Mapping[str, Any], name: str):
        package = _requires.requires(PACKAGE)
        # It finds a run again by its name, which another folder's run may have too.
        self._run = package.init(
            project=os.environ.get("TRACKIO_PROJECT", "jlora"),
            name=f"{name}-{identity(folder, PACKAGE, resume_at=resume_at)}",
            config=dict(settings),
            resume="allow",
            embed=False,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
