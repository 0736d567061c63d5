"""The numbers of a run as a file: a line of JSON for each step."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _files


class Metrics:
    """A JSON line for each step, on disk as soon as it is written.

    Args:
        path: the file.
        resume_at: steps already taken. Lines of later ones, which a run that broke off wrote
            after its last checkpoint, are removed; 0 starts the file afresh.
    """

    def __init__(self, path: str | Path, *, resume_at: int = 0):
        path = Path(path)
        kept = [row for row in read_metrics(path) if row["step"] <= resume_at] if resume_at else []
        _files.write_together({path: "".join(map(_line, kept)).encode()})
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends the line of the step."""
        self._file.write(_line({"step": step, **values}))
        self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; what is no line of a step, as one that was cut, is left out."""
    path = Path(path)
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
