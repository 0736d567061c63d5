"""Whether two hosts have the same files of a model, told without reading all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from jlora.models._files import _source

_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")  # of a folder
_PIECES, _PIECE = 1024, 256  # bytes of each


def sampled_files(source: str | Path) -> dict[str, str]:
    """For each file of the model its size and a hash of 256 KiB of it, evenly spread.

    So every tensor of a large file that is more than a thousandth of it is looked at; a file of up
    to 256 KiB is read whole.

    Args:
        source: as for `jlora.models.load`.

    Raises:
        ValueError: when there is no such model, or a file can't be read.
    """
    where = _source.located(source)
    if where.is_file():
        return {where.name: _sampled(where)}
    files = {path for pattern in _FILES for path in where.glob(pattern) if path.is_file()}
    return {path.name: _sampled(path) for path in sorted(files)}


def _sampled(path: Path) -> str:
    size, found = path.stat().st_size, hashlib.sha256()
    starts = np.linspace(0, max(0, size - _PIECE), _PIECES).astype(np.int64)
    try:
        with path.open("rb") as file:
            if size <= _PIECES * _PIECE:
                found.update(file.read())
            else:
                for start in starts.tolist():
                    file.seek(start)
                    found.update(file.read(_PIECE))
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    return f"{size} bytes, {found.hexdigest()[:12]}"
