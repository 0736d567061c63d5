"""Whether all processes see the same folder."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from jlora import _together

_TOKEN = ".seen-by-all"
_SECONDS = 20  # that a file may take to be seen on another host


def require(folder: Path) -> None:
    """Raises, in all processes, unless each reads in the folder what process 0 writes there.

    Raises:
        ValueError: when one can't, or names the folder otherwise: it is named.
    """
    if _together.client() is None:
        return
    _together.agreed("the run's folder", str(folder.absolute()))
    path, token = folder / _TOKEN, uuid.uuid4().hex
    token = _together.by_first(f"writing into {folder}", lambda: path.write_text(token) and token)

    def read() -> None:
        until, found = time.monotonic() + _SECONDS, ""
        while found != token:
            try:
                found = path.read_text()
            except OSError as error:
                problem = error.strerror
            else:
                problem = "another file is there"
            if found != token and time.monotonic() > until:
                raise ValueError(
                    f"{path} can't be read ({problem}): expected a folder that all processes see"
                )
            time.sleep(0 if found == token else 0.2)

    try:
        _together.together(f"the folder {folder}", read)
    finally:
        if _together.index() == 0:
            path.unlink(missing_ok=True)
