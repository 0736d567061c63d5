"""Whether memory ran out, how much there is, and which settings would do with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jlora.trainer._outlook import Outlook

_CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def ran_out(error: BaseException) -> bool:
    """Whether the error says that memory ran out, the device's or the machine's.

    Args:
        error: what was raised, in compiling or in running.

    Example:
        >>> import jlora
        >>> jlora.trainer.ran_out(MemoryError()), jlora.trainer.ran_out(ValueError("rank"))
        (True, False)
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError)


def memory_limit(device: Any = None) -> int | None:
    """The bytes that programs may take on a device: its own account, or the machine's memory.

    Args:
        device: one of `jax.local_devices()`; the first if None.

    Returns:
        the bytes; None where nobody says.

    Example:
        >>> import jlora
        >>> limit = jlora.trainer.memory_limit()
        >>> limit is None or limit > 2**20
        True
    """
    device = jax.local_devices()[0] if device is None else device
    if stats := device.memory_stats():
        return stats.get("bytes_limit")
    if device.platform != "cpu":
        return None
    return min(_of_machine(), default=None)


def _of_machine() -> Iterator[int]:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, _CONTROL_GROUPS):  # of a container
        if path.exists() and (said := path.read_text().strip()).isdecimal():
            yield int(said)


def fitting(
    outlook_of: Callable[[str, int], Outlook],
    *,
    batch_size: int,
    accumulate: int = 1,
    remats: Sequence[str],
    limit: int,
) -> tuple[str, int] | None:
    """The first settings (remat, accumulate) whose step fits, or None: then no batch does.

    From those given on, what changes least comes first: more parts, down to one row each, then less
    that is kept for the gradient. The update is the same with all of them. A compiler that runs out
    of memory itself says that they do not fit.

    Args:
        outlook_of: ``(remat, accumulate) -> Outlook``: makes the step and calls `outlook`.
        batch_size: rows of an update.
        accumulate: in how many parts they are computed at least.
        remats: the names to choose from, what keeps most first: the end of `jlora.models.REMATS`
            that begins with the one that is set.
        limit: bytes, from `memory_limit`.

    Raises:
        jax.errors.JaxRuntimeError: of a compiler that fails for another reason.

    Example:
        >>> import jlora
        >>> def outlook_of(remat, accumulate):
        ...     temporary = 8 // accumulate * {"products": 500, "full": 100}[remat]
        ...     return jlora.trainer.Outlook(
        ...         frozen=0, adapter=0, optimizer=0, inputs=0, temporary=temporary,
        ...         peak=temporary, flops=0,
        ...     )
        >>> asked = {"batch_size": 8, "remats": ("products", "full")}
        >>> jlora.trainer.fitting(outlook_of, **asked, limit=2500)
        ('products', 2)
        >>> jlora.trainer.fitting(outlook_of, **asked, limit=150)
        ('full', 8)
    """
    for remat, parts in _ladder(batch_size, accumulate, remats):
        try:
            if outlook_of(remat, parts).peak <= limit:
                return remat, parts
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
    return None


def _ladder(batch_size: int, accumulate: int, remats: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each remat with numbers of parts that divide the rows and double at least."""
    parts: list[int] = []
    for each in range(accumulate, batch_size + 1):
        if batch_size % each == 0 and (not parts or each >= 2 * parts[-1]):
            parts.append(each)
    for remat in remats:
        for each in parts:
            yield remat, each
