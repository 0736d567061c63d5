"""How a person stops a run: signals that the loop asks for, so that it can save first."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from jlora import _together

_USES = itertools.count()  # of `stop_on_signals`: all processes come to each of them


class Stop:
    """Whether someone asked the run to stop, and by which signal.

    Of several processes each asks it equally often, and all are told at the same asking, whichever
    of them the signal came to.

    Example:
        >>> import jlora
        >>> stop = jlora.trainer.Stop()
        >>> stop.requested, stop.signal
        (False, None)
    """

    signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """True once a signal has come. With several processes: ask once a step, in all of them."""
        return self.signal is not None

    def _came(self, number: int) -> None:
        self.signal = signal.Signals(number)


class _StopOfAll(Stop):
    """The same for several processes, at no cost where no signal comes.

    The process that a signal comes to tells the others. A thread in each says then at which asking
    it is, while the next one has to wait; the first that none of them has come to is the one at
    which all are told.
    """

    def __init__(self):
        self._name = f"stop {next(_USES)}"
        self._asked = 0  # times
        self._at: int | None = None  # the asking at which all are told
        self._told: signal.Signals | None = None
        self._lock = threading.Lock()
        self._ended = False
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def requested(self) -> bool:
        with self._lock:
            self._asked += 1
            if self._at is not None and self._asked >= self._at:
                self.signal = self._told
        return self.signal is not None

    def _came(self, number: int) -> None:
        key = f"{self._name} by signal"
        _together.client().key_value_set(key, str(number), allow_overwrite=True)

    def _listen(self) -> None:
        import jax

        key = f"{self._name} by signal"
        while not self._ended:
            try:
                number = _together.client().blocking_key_value_get(key, 2000)
                break
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    return  # the run has ended
        else:
            return
        with self._lock:
            askings = _together.exchange(self._name, str(self._asked))
            self._told = signal.Signals(int(number))
            self._at = max(map(int, askings)) + 1

    def end(self) -> None:
        """Leaves it together: a signal that came after the last asking is told too."""
        with self._lock:  # never in the middle of an agreement
            own = "" if self._told is None else str(int(self._told))
        told = next(filter(None, _together.exchange(f"{self._name} ends", own)), "")
        if told:
            self.signal = signal.Signals(int(told))
        self._ended = True


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
    stop = Stop() if _together.client() is None else _StopOfAll()
    came: float | None = None
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal came
        if came is None:
            came = time.monotonic()
            stop._came(number)
            if not isinstance(stop, _StopOfAll):
                restore()
        elif time.monotonic() - came > 1:  # a launcher may signal a process and its parent
            restore()
            os.kill(os.getpid(), number)

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    for number in former:
        signal.signal(number, handle)
    try:
        yield stop
        if isinstance(stop, _StopOfAll):
            stop.end()
    finally:
        restore()
