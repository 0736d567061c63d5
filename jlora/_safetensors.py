"""The names, shapes and dtypes in safetensors files, from their headers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jlora._requires import requires


class Header(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: str  # as the format has it: F32, BF16
    file: Path


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
                for name in file.keys():  # noqa: SIM118 - not a dict
                    part = file.get_slice(name)
                    found[name] = Header(tuple(part.get_shape()), part.get_dtype(), path)
        except (safetensors.SafetensorError, OSError) as error:
            raise not_whole(path, error) from None
    return found


def not_whole(path: Path, error: Exception) -> ValueError:
    """What to say of a file that is damaged."""
    return ValueError(f"{path}: no whole safetensors file ({error}). Get it again")
