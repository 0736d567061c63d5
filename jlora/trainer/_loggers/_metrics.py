"""The numbers of a run as a file: a line of JSON for each step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jlora import _files
from jlora._sealed_json import VERSION, check_version
from jlora.trainer._loggers import _logger

NOT_FINITE = "not_finite"  # {name: "nan", "inf" or "-inf"}, for JSON has no such numbers
RESERVED = ("step", NOT_FINITE, VERSION)
_NEWEST = 2  # 1 said no version, and wrote NaN, which is no JSON


class Metrics:
    """A JSON line for each step, on disk as soon as it is written.

    JSON has no NaN and no infinity: such a value stands as null in its place and as text in the
    field ``not_finite``, ``{"step": 5, "loss": null, "not_finite": {"loss": "nan"}, ...}``. So any
    reader takes the file, and `read_metrics` gives the numbers back. Each line ends with the
    ``version`` of this format: so it says it still when lines are taken out of the file.

    Args:
        path: the file.
        resume_at: steps already taken. Lines of later ones, which a run that broke off wrote
            after its last checkpoint, are removed; 0 starts the file afresh.

    Raises:
        ValueError: when a value is no number, or its name one of ``step``, ``not_finite`` and
            ``version``; when the file to go on with is a newer jlora's, which stays as it is.

    Example:
        >>> import pathlib, tempfile
        >>> import jlora
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "metrics.jsonl"
        ...     with jlora.trainer.Metrics(path) as metrics:
        ...         metrics.write(1, {"loss": float("inf")})
        ...     print(path.read_text(), end="")
        {"step": 1, "loss": null, "not_finite": {"loss": "inf"}, "version": 2}
    """

    def __init__(self, path: str | Path, *, resume_at: int = 0):
        path = Path(path)
        rows = read_metrics(path) if resume_at else []
        kept = [_line(row) for row in rows if row["step"] <= resume_at]
        _files.write_together({path: "".join(kept).encode()})
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends the line of the step.

        Raises:
            ValueError: as above.
        """
        if taken := [name for name in RESERVED if name in values]:
            raise ValueError(f"{' and '.join(taken)}: expected other names for values")
        self._file.write(_line({"step": step, **_logger.numbers(values)}))
        self._file.flush()

    def close(self) -> None:
        """Closes the file; every line is on disk already."""
        self._file.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, oldest first; what is no line of a step, as one cut off, is not.

    Args:
        path: the file. One that is not there has no lines.

    Returns:
        for each line ``step`` and the values that were written, NaN and infinities as they were.

    Raises:
        ValueError: when a newer jlora wrote the file.

    Example:
        >>> import pathlib, tempfile
        >>> import jlora
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "metrics.jsonl"
        ...     with jlora.trainer.Metrics(path) as metrics:
        ...         metrics.write(1, {"loss": float("nan")})
        ...     jlora.trainer.read_metrics(path)
        [{'step': 1, 'loss': nan}]
    """
    path = Path(path)
    lines = path.read_bytes().splitlines() if path.exists() else []
    return list(_rows(path, lines))


def _rows(path: Path, lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
            version = row.pop(VERSION, 1)
            odd = {name: float(text) for name, text in row.pop(NOT_FINITE, {}).items()}
        except (ValueError, AttributeError, TypeError):
            continue
        if isinstance(version, int):
            check_version(version, path, newest=_NEWEST)
        if isinstance(row.get("step"), int):
            yield row | odd


def _line(row: Mapping[str, Any]) -> str:
    odd = {
        name: str(value)
        for name, value in row.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    told = {NOT_FINITE: odd} if odd else {}
    return json.dumps({**row, **dict.fromkeys(odd), **told, VERSION: _NEWEST}) + "\n"
