"""By which name a service knows the run of a folder, so that a resumed run is found again."""

from __future__ import annotations

import secrets
from pathlib import Path

from jlora import _sealed_json

_VERSION = 2  # 1 had no sum


def identity(folder: Path, service: str, *, resume_at: int) -> str:
    """Eight letters and digits: those of the run that goes on, or new ones."""
    path = folder / "loggers.json"
    known = _read(path) if path.exists() else {}
    if not resume_at or service not in known:
        known[service] = secrets.token_hex(4)
        _sealed_json.write(path, known, version=_VERSION)
    return known[service]


def _read(path: Path) -> dict[str, str]:
    told = _sealed_json.read(path, newest=_VERSION, sealed_since=2)
    return {service: its for service, its in told.items() if service != _sealed_json.VERSION}
