"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _requires

PACKAGE = "tensorboardX"


class TensorBoard:
    """Writes to ``folder/tensorboard``; steps that are taken anew replace what stood there."""

    def __init__(self, folder: Path, *, resume_at: int, settings: Mapping[str, Any], name: str):
        package = _requires.requires(PACKAGE)
        directory = folder / "tensorboard"
        if not resume_at:
            for former in directory.glob("events.out.tfevents.*"):
                former.unlink()
        self._writer = package.SummaryWriter(
            str(directory),
            purge_step=resume_at + 1 if resume_at else None,
            flush_secs=30,
            filename_suffix=f".{resume_at:09}",  # two files of one second are two files
        )
        if settings and not resume_at:
            text = json.dumps(settings, indent=4, default=str)
            indented = "".join(f"    {line}\n" for line in text.splitlines())  # as code
            self._writer.add_text("settings", indented, 0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
