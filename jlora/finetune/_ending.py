"""How a process of several that fails ends the others, so that each of them says why."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from jlora import _together

_FAILED, _GONE = "jlora failed", "jlora gone/"
_OWN_SECONDS = 3.0  # in which an error that all processes have is told by each as its own
_GONE_SECONDS = 10.0  # that process 0, through which they hear of it, waits for the others


class Ending:
    """Listens, in a thread, for another process that has failed.

    Args:
        tell: is given the line on another's failure; it ends this process.
    """

    def __init__(self, tell: Callable[[str], Any]):
        self._tell = tell
        self._speaks = threading.Lock()  # who has it says why this process ends
        self._listens = True
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def speak(self) -> None:
        """Nothing, to the first that asks; the other never goes on, and the process ends."""
        self._speaks.acquire()

    def end(self, status: int, why: str = "") -> None:
        """Ends this process.

        Args:
            status: of its exit.
            why: what the others are told, if they are to end because of it.
        """
        its = _together.client()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first that failed is told of
            if why:
                its.key_value_set(_FAILED, json.dumps([_together.index(), why]))
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            its.key_value_set(f"{_GONE}{_together.index()}", "")
            until = time.monotonic() + (0 if _together.index() else _GONE_SECONDS)
            while time.monotonic() < until:
                if len(its.key_value_dir_get(_GONE)) == _together.count():
                    break
                time.sleep(0.05)
        os._exit(status)  # what others can't answer any more is not waited for

    def over(self) -> None:
        """The run has ended well: listens no more."""
        self._listens = False
        self._thread.join()

    def _listen(self) -> None:
        while self._listens:
            try:
                told = _together.client().blocking_key_value_get(_FAILED, 500)
                break
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    return
        else:
            return
        process, why = json.loads(told)
        if process != _together.index():
            time.sleep(_OWN_SECONDS)
            self._tell(f"process {process} failed, so this one ended too: {why}")
