"""By which name a service knows the run of a folder, so that a resumed run is found again."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from jlora import _files


def identity(folder: Path, service: str, *, resume_at: int) -> str:
    """Eight letters and digits: those of the run that goes on, or new ones."""
    path = folder / "loggers.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not resume_at or service not in known:
        known[service] = secrets.token_hex(4)
        _files.write_json(path, known)
    return known[service]
