"""How a person stops a run: signals that the loop asks for, so that it can save first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether someone asked the run to stop, and by which signal.

    Example:
        >>> import jlora
        >>> stop = jlora.trainer.Stop()
        >>> stop.requested, stop.signal
        (False, None)
    """

    signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """True once a signal has come."""
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A `Stop` that Ctrl-C and SIGTERM set, so that the loop can save before it leaves.

    A second signal acts as it would have without.

    Example:
        >>> import os
        >>> import signal
        >>> import jlora
        >>> with jlora.trainer.stop_on_signals() as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     print(stop.requested)
        True
    """
    stop = Stop()
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        restore()

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    for number in former:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
