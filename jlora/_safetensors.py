"""The names, shapes and dtypes in safetensors files, from their headers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jlora._requires import requires


class Header(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: str  # as the format has it: F32, BF16
    file: Path
    start: int = 0  # its first byte, in a file that is here


def headers(files: Iterable[Path]) -> dict[str, Header]:
    """Every tensor of the files, by name, and what its file says of it.

    Raises:
        ValueError: when a file is damaged.
    """
    safetensors = requires("safetensors")
    found: dict[str, Header] = {}
    for path in files:
        try:
            with safetensors.safe_open(str(path), framework="numpy") as file:
                names = list(file.keys())
            begin, entries = _entries(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise not_whole(path, error) from None
        for name in names:
            entry = entries[name]
            start = begin + entry["data_offsets"][0]
            found[name] = Header(tuple(entry["shape"]), entry["dtype"], path, start)
    return found


def _entries(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin in a file that is whole, and what its header says of each."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))


def not_whole(path: Path, error: Exception) -> ValueError:
    """What to say of a file that is damaged."""
    return ValueError(f"{path}: no whole safetensors file ({error}). Get it again")
