"""Arrays on disk: the one place that speaks to Orbax, for flat dicts of arrays by path."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jlora import _files, _together, _words

Arrays = dict[str, Any]  # jax.Array, or jax.ShapeDtypeStruct with its sharding

_HALF_WRITTEN = ".orbax-checkpoint-tmp"  # follows the folder's name until it is complete


def write(directory: Path, arrays: Arrays) -> None:
    """Writes the arrays; the directory appears only once they are complete.

    Of several processes each calls it and writes what it holds.

    Raises:
        OSError: when they can't be written, in all processes.
    """
    _together.together(f"room for {directory}", lambda: _require_writable(directory, arrays))
    _together.together(f"writing {directory}", lambda: _write(directory, arrays))


def require_of_all(directory: Path, arrays: Arrays) -> None:
    """Raises a ValueError, in all processes, where an array lies with one of several alone.

    Each has one of its own then, and none of them is the array. Before anything is written.
    """

    def check() -> None:
        own = [path for path, its in arrays.items() if getattr(its, "is_fully_addressable", False)]
        if own:
            raise ValueError(
                f"{directory} can't be saved: {len(own)} of {len(arrays)} arrays lie on devices of "
                f"one process alone: {_words.named(own)}. Expected each on those of all "
                f"{_together.count()} processes: lay an adapter out as its base with "
                "jax.device_put(lora, jlora.shardings(frozen, lora))"
            )

    if _together.count() > 1:
        _together.together(f"where the arrays of {directory} lie", check)


def remove(directory: Path) -> None:
    """Deletes the arrays, whole or half written."""
    for path in (directory, *directory.parent.glob(f"{directory.name}{_HALF_WRITTEN}*")):
        _files.remove_folder(path)


def _write(directory: Path, arrays: Arrays) -> None:
    ocp = _orbax()
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    needed = _needed(arrays)
    with contextlib.closing(checkpointer), _quiet(), _said_once(), _unwritten(directory, needed):
        checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(arrays), force=True)


def _needed(arrays: Arrays) -> int:
    """The bytes of room that they take, all processes' together."""
    records = 2**20  # Orbax's own
    return sum(array.nbytes for array in arrays.values()) + records


def read(directory: Path, expected: Arrays) -> Arrays:
    """The arrays, each placed as ``expected`` says.

    Raises:
        ValueError: when what is there is not what is expected, or can't be read.
    """
    ocp = _orbax()
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        with _explained(directory):
            found = checkpointer.metadata(directory.absolute()).item_metadata
            if found is None:
                raise ValueError("no arrays are there")
        _check(directory, expected, found.tree)
        with _explained(directory):
            each = ocp.checkpoint_utils.construct_restore_args(expected)
            args = ocp.args.PyTreeRestore(item=expected, restore_args=each)
            return checkpointer.restore(directory.absolute(), args=args)


def seal(directory: Path) -> dict[str, str]:
    """The sha256 of every file in the folder, by its path in it."""
    return {
        file.relative_to(directory).as_posix(): _digest(file)
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:  # never whole in memory: a table that trains has gigabytes
        return hashlib.file_digest(file, "sha256").hexdigest()


def abstract(shape: Any, dtype: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """A ShapeDtypeStruct that says where the array shall go: the first device unless told."""
    where = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=where)


def _check(directory: Path, expected: Arrays, found: Mapping[str, Any]) -> None:
    """Raises one ValueError that names each array which differs from what is expected."""
    problems = [f"{path}: missing" for path in expected if path not in found]
    problems += [f"{path}: not expected" for path in found if path not in expected]
    for path in sorted(expected.keys() & found.keys()):
        wanted, got = expected[path], found[path]
        if (tuple(got.shape), got.dtype) != (tuple(wanted.shape), wanted.dtype):
            problems.append(
                f"{path}: expected {wanted.dtype}{tuple(wanted.shape)}, "
                f"got {got.dtype}{tuple(got.shape)}"
            )
    if problems:
        raise ValueError(
            f"{directory}: the arrays are not the ones expected:\n  " + "\n  ".join(problems)
        )


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turns whatever Orbax raises for damaged files into one ValueError."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{directory}: the arrays can't be read: {reason}") from error


def _require_writable(directory: Path, arrays: Arrays) -> None:
    """Raises an OSError unless the arrays have room and can be written, before any of them is.

    A process that failed among others that write would leave them waiting.
    """
    needed = _needed(arrays)
    _files.require_room(directory, needed)
    if _together.client() is not None:
        with _unwritten(directory, needed), tempfile.TemporaryFile(dir=directory.parent) as file:
            file.write(b" ")
            file.flush()


@contextlib.contextmanager
def _unwritten(directory: Path, needed: int) -> Iterator[None]:
    """Turns whatever Orbax raises where it can't write (ValueError, too) into one OSError."""
    try:
        yield
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if os.strerror(number) in str(error):
                reason = f"{os.strerror(number)}: it needs {_words.size(needed)}"
        raise OSError(f"{directory} could not be written: {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs its progress through absl: keep that from the user's terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs errors that it also raises
    try:
        yield
    finally:
        logger.setLevel(level)


def _orbax() -> Any:
    import orbax.checkpoint  # a second; a run that saves nothing yet need not wait for it

    return orbax.checkpoint


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Where one array can't be written, Orbax raises that, and lets go of the others.

    They end a moment later, after a failure even: TensorStore, asyncio and Orbax itself would print
    a traceback for each.
    """
    of_orbax = f"{os.sep}orbax{os.sep}"
    theirs = of_orbax, "[os_error_code="  # the latter is TensorStore's
    quieter = {
        logging.getLogger("asyncio"): lambda its: not any(map(its.getMessage().count, theirs)),
        logging.getLogger("absl"): lambda its: not (its.exc_info and of_orbax in its.pathname),
    }
    former = sys.unraisablehook

    def told(failed: Any) -> None:
        let_go = isinstance(failed.exc_value, RuntimeError) and failed.object is None
        if not (let_go and str(failed.exc_value) == "Event loop is closed"):
            former(failed)

    sys.unraisablehook = told
    for logger, told_of in quieter.items():
        logger.addFilter(told_of)
    yield
    sys.unraisablehook = former  # reached without a failure alone
    for logger, told_of in quieter.items():
        logger.removeFilter(told_of)
