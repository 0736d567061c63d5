"""Small files in one step: a reader sees the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _words


def write_together(contents: Mapping[Path, bytes], *, names: Path | None = None) -> None:
    """Writes the files: each is complete on the disk before the first takes its place.

    They take their places in the order of ``contents``. Where old ones are replaced, ``names`` is
    the one without which the others are nothing: it goes first and comes last, so that no reader
    takes some of the old and some of the new for one.

    Raises:
        OSError: when one can't be written; what was there stays.
    """
    for path in contents:
        if path.is_dir():  # found only after others had taken their places
            raise OSError(f"{path} could not be written: it is a folder")
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    path = None
    try:
        for path, content in contents.items():
            with temporary[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if names is not None:
            names.unlink(missing_ok=True)
        for path in sorted(contents, key=lambda each: each == names):
            os.replace(temporary[path], path)
        for folder in dict.fromkeys(path.parent for path in contents):
            sync_folder(folder)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror}") from error
    finally:
        for each in temporary.values():
            each.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes the JSON file in one step.

    Raises:
        ValueError: when JSON can't hold the content, as a number that is not finite.
        OSError: when it can't be written; what was there stays.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_together({path: text.encode()})


def sync(folder: Path) -> None:
    """Waits until everything in the folder is on the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Waits until the names in the folder are on the disk, where the system can say so."""
    with contextlib.suppress(OSError):  # some file systems, and Windows, sync no folders
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


LARGEST_TEXT = 200 * 10**6  # bytes; the largest tokenizers have some 35 MB


def require_regular(path: Path) -> None:
    """Raises a ValueError where a file would never end, or is no file: a FIFO, a device, a folder.

    What is not there is none of this function's business.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file: expected one that ends")
    text = path.suffix in (".json", ".jinja") and path.exists()
    if text and (size := path.stat().st_size) > LARGEST_TEXT:
        raise ValueError(
            f"{path} has {_words.size(size)}: expected at most {_words.size(LARGEST_TEXT)} of a "
            "file of its kind"
        )


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: when it can't be read or is no JSON.
    """
    require_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged, no JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is damaged, no JSON: it is nested too deeply") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: when there is no such file or no object in it.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def require_room(directory: Path, needed: int) -> None:
    """Raises an OSError unless the disk has room for so many bytes, before any is written."""
    if problem := lack_of_room(directory, needed):
        raise OSError(f"{directory} could not be written: {problem}")


def lack_of_room(directory: Path, needed: int) -> str | None:
    """What is missing where the disk has no room for so many bytes, or None."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return None
    return f"it needs {_words.size(needed)}, and the disk has {_words.size(free)} left"


def runs(process: int) -> bool:
    """Whether another process has this number: in a container the next one often gets it again."""
    if process == os.getpid():
        return False
    if sys.platform == "win32":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def remove_folder(path: Path) -> None:
    """Deletes a folder of a write that failed, also while what was begun still puts files there.

    For two seconds: what is left then is in nobody's way.
    """
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)
