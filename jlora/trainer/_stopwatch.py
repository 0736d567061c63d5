"""How long a step takes, with what is not the step left out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Measures seconds from lap to lap; what runs while it is paused is not counted.

    Example:
        >>> import time
        >>> import jlora
        >>> watch = jlora.trainer.Stopwatch()
        >>> with watch.paused():
        ...     time.sleep(0.01)  # an evaluation
        >>> seconds = watch.lap()
    """

    def __init__(self):
        self._began = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, or since it was made, without pauses."""
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what runs inside the ``with``."""
        stopped = time.perf_counter()
        try:
            yield
        finally:
            self._began += time.perf_counter() - stopped
