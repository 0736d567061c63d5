"""A file that appears complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from jlora._files import lack_of_room, runs, sync_folder
from jlora.models._files._gguf_layout import Copied, Fresh, Piece, size_of

_AT_ONCE = 2**24  # bytes that are copied at once


def claim(out: Path, *, overwrite: bool, sources: Sequence[Path]) -> Path:
    """The file's own path, links followed, once it may be written; nothing is written yet.

    Args:
        out: the file to be, a ``.gguf``.
        overwrite: whether it may replace a GGUF file.
        sources: files and folders that are read, and that stay.

    Raises:
        ValueError: when it has another ending, or something else stands there.
    """
    out = out.expanduser().resolve()
    if out.suffix != ".gguf":
        raise ValueError(f"{out.name} is no name of a GGUF file: expected one that ends in .gguf")
    for source in (each.resolve() for each in sources):
        if out == source or source in out.parents:
            raise ValueError(f"{out} is what is read, or in it: choose another file")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: expected a file")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there: choose another file, or overwrite it")
    if out.exists() and not _is_gguf(out):
        raise ValueError(f"{out} is no GGUF file, and is not overwritten")
    return out


def write(out: Path, pieces: Sequence[Piece], fresh: Callable[[str], bytes]) -> None:
    """Writes the file beside ``out``, which it becomes once all of it is on the disk.

    A process that is killed leaves a hidden file ``.<name>.unfinished-<process>``, which the next
    one removes.

    Args:
        out: from `claim`.
        pieces: what the file is made of.
        fresh: gives the bytes of a tensor that changes, by its name.

    Raises:
        OSError: when the disk has no room, or the file can't be written; what was there stays.
    """
    aside = out.with_name(f".{out.name}.unfinished-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(out)
        if problem := lack_of_room(out, size_of(pieces)):
            raise OSError(0, problem)
        try:
            with aside.open("wb") as file:
                for piece in pieces:
                    _put(file, piece, fresh)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, out)
            sync_folder(out.parent)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{out} could not be written: {error.strerror or error}") from error


def _put(file, piece: Piece, fresh: Callable[[str], bytes]) -> None:
    if isinstance(piece, Copied):
        with piece.file.open("rb") as source:
            source.seek(piece.start)
            left = piece.size
            while left:
                found = source.read(min(left, _AT_ONCE))
                if not found:
                    raise OSError(0, f"{piece.file} became shorter while it was read")
                file.write(found)
                left -= len(found)
    elif isinstance(piece, Fresh):
        content = fresh(piece.name)
        assert len(content) == piece.size
        file.write(content)
    else:
        file.write(piece)


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _remove_left_over(out: Path) -> None:
    """What processes that were killed left behind."""
    start = f".{out.name}.unfinished-"
    for path in out.parent.iterdir():
        number = path.name.removeprefix(start)
        if path.name.startswith(start) and number.isdigit() and not runs(int(number)):
            path.unlink(missing_ok=True)
