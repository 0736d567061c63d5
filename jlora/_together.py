"""What the processes of a run tell one another: short texts by name, within a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from jlora import _words

SECONDS = 600.0  # that the others are waited for; those that died are found out by JAX much sooner
_ROOT = "jlora"
_FAILED_SECONDS = 10.0  # that the others are waited for where this process has failed
_SHOWN = 5  # differences in a message


def client() -> Any:
    """JAX's client of the coordinator; None where this process runs alone."""
    # No public name of JAX gives texts, time limits and who is absent; Orbax uses this one as well.
    from jax._src import distributed

    return distributed.global_state.client


def count() -> int:
    """How many processes the run has."""
    from jax._src import distributed

    return distributed.global_state.num_processes if client() is not None else 1


def index() -> int:
    """The number of this one among them, from 0."""
    from jax._src import distributed

    return distributed.global_state.process_id if client() is not None else 0


def exchange(name: str, text: str, *, seconds: float = SECONDS) -> list[str]:
    """What each process gave under this name, in their order; all are waited for.

    Nothing runs on a device. Everything else here is made of this.

    Args:
        name: of the place in the program, the same in all processes.
        text: of this process.
        seconds: that the others have to come here.

    Raises:
        TimeoutError: when they do not: those that are absent are named.
    """
    its = client()
    if its is None:
        return [text]
    folder = f"{_ROOT}/{name.replace('/', '|')}/"
    its.key_value_set(f"{folder}{index()}", text, allow_overwrite=True)
    _barrier(its, name, folder, seconds)
    told = {key.rpartition("/")[2]: text for key, text in its.key_value_dir_get(folder)}
    _barrier(its, f"{name}: read", folder, seconds)  # nobody gives the next one under this name
    its.key_value_delete(f"{folder}{index()}")
    return [told[str(process)] for process in range(count())]


def _barrier(its: Any, name: str, folder: str, seconds: float) -> None:
    import jax

    try:
        its.wait_at_barrier(f"{_ROOT}: {name}", int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        came = {key.rpartition("/")[2] for key, _ in its.key_value_dir_get(folder)}
        absent = [each for each in range(count()) if str(each) not in came]
        raise TimeoutError(
            f"{name}: waited {seconds:g} seconds for {_numbers(absent) or 'others'} of "
            f"{count()}{_elsewhere(its, absent)}"
        ) from None


def _numbers(processes: list[int]) -> str:
    """``process 1``, ``processes 1, 2``."""
    numbers = ", ".join(map(str, processes))
    return numbers and f"process{'es' if len(processes) > 1 else ''} {numbers}"


def _elsewhere(its: Any, absent: list[int]) -> str:
    """Where the first of the absent waits itself, if it does."""
    for key, _ in its.key_value_dir_get(f"{_ROOT}/"):
        _, name, process = key.rsplit("/", 2)
        if absent and process == str(absent[0]):
            return f", which waits at {name.replace('|', '/')}"
    return ""


def by_first(name: str, do: Callable[[], Any], *, seconds: float = SECONDS) -> Any:
    """What ``do()`` gives in process 0, in all processes; or its error, raised in all.

    The others wait, and do not call it. With one process it is ``do()``.

    Args:
        name: of what is done, the same in all processes; for messages.
        do: gives what JSON can hold, or None.
        seconds: that the others wait for it.

    Raises:
        ValueError, OSError: those of ``do``.
        RuntimeError: in the others, for any other error.
        TimeoutError: when processes do not come here: those that are absent are named.

    Example:
        >>> import jlora
        >>> jlora.trainer.by_first("the day", lambda: "2026-11-28")
        '2026-11-28'
    """
    if client() is None:
        return do()
    told, own = "", None
    if index() == 0:
        try:
            told = json.dumps({"value": do()})
        except Exception as error:
            own, told = error, json.dumps({"error": str(error), "kind": _kind(error)})
    first = json.loads(exchange(name, told, seconds=seconds)[0])
    if own is not None:
        raise own
    if "error" in first:
        raise _KINDS[first["kind"]](first["error"])
    return first["value"]


_KINDS = {"ValueError": ValueError, "OSError": OSError, "RuntimeError": RuntimeError}


def _kind(error: Exception) -> str:
    """The nearest of the kinds that are told of."""
    return next((kind for kind in _KINDS if isinstance(error, _KINDS[kind])), "RuntimeError")


def together(name: str, do: Callable[[], Any], *, seconds: float = SECONDS) -> Any:
    """What ``do()`` gives here; where it fails in any process, an error is raised in all.

    Args:
        name: of what is done, the same in all processes; for messages.
        do: is called in every process.
        seconds: that each waits for the others.

    Raises:
        ValueError, OSError: that of ``do``; in the others one of its kind that names the process.
        TimeoutError: as `exchange`.
    """
    if client() is None:
        return do()
    value, own = None, None
    try:
        value = do()
    except Exception as error:
        own = error
    if own is not None:  # the others may wait inside of theirs for this process
        with contextlib.suppress(TimeoutError):
            exchange(
                name, json.dumps([_kind(own), str(own)]), seconds=min(seconds, _FAILED_SECONDS)
            )
        raise own
    failed = [(at, text) for at, text in enumerate(exchange(name, "", seconds=seconds)) if text]
    if failed:
        kind, message = json.loads(failed[0][1])
        raise _KINDS[kind](f"{name}: process {failed[0][0]} of {count()}: {message}")
    return value


def agreed(name: str, value: Any, *, seconds: float = SECONDS) -> Any:
    """The value, once all processes have given the same one.

    Args:
        name: of what is compared, the same in all processes.
        value: what JSON can hold; of a mapping each entry is compared for itself.
        seconds: that each waits for the others.

    Raises:
        ValueError: in all processes, when they differ: what, in which, and how.
        TimeoutError: when processes do not come here: those that are absent are named.

    Example:
        >>> import jlora
        >>> jlora.trainer.agreed("settings", {"rank": 8, "steps": 100})
        {'rank': 8, 'steps': 100}
    """
    if client() is None:
        return value
    texts = exchange(name, json.dumps(value, sort_keys=True, default=str), seconds=seconds)
    if len(set(texts)) > 1:
        raise ValueError(
            f"{name}: the processes differ: {'; '.join(_differences(texts))}. Expected the same in "
            "all: start each with the same command and the same files"
        )
    return value


def _differences(texts: list[str]) -> list[str]:
    """What differs from process 0's, one sentence for each name."""
    values = [json.loads(text) for text in texts]
    named = [each if isinstance(each, Mapping) else {"it": each} for each in values]
    first, found = named[0], []
    for name in sorted({name for each in named for name in each}):
        others = [at for at, each in enumerate(named) if each.get(name) != first.get(name)]
        if others:
            its, here = (
                _words.one_line(repr(each.get(name)), 100) for each in (named[others[0]], first)
            )
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            found.append(f"{name} is {its} in process {others[0]}{more} and {here} in process 0")
    left = len(found) - _SHOWN
    return found[:_SHOWN] + ([f"and {left} more"] if left > 0 else [])
