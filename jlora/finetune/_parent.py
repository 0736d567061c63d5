"""The process that a person starts of a run of several: it tells in one line why the run ended.

JAX's runtime ends a process whose peers are gone in the middle of itself, with some 25 lines of
C++. So the run is a child with the same arguments, what its runtime writes goes through here, and
Python's own lines go where they always do.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

_MARK = "JLORA_RUN_OF_PARENT"  # in the child: the numbers of its parent's pipe and of stderr
_PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
_FATAL = re.compile(r"[EF]\d{4} \d\d:.*(oordination_service|client\.h|distributed service)")


def status_of_child(argv: Sequence[str] | None, tell: Callable[[str], Any]) -> int | None:
    """The exit status of the run; None in the process that is to do it.

    Args:
        argv: the flags that a script gave, None for the process's own. Where they are not those of
            the process there is no command to start again, and the run has no parent.
        tell: prints why the run ended, where its runtime ended it.
    """
    if mark := os.environ.pop(_MARK, None):
        _become_child(*map(int, mark.split()))
        return None
    if argv is not None and (not argv or list(argv) != sys.orig_argv[-len(argv) :]):
        return None
    alive, held = os.pipe()
    errors = os.dup(2)
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_MARK: f"{alive} {errors}"},
        stderr=subprocess.PIPE,
        pass_fds=(alive, errors),
        start_new_session=True,  # Ctrl-C comes to it once, from here
        text=True,
        errors="replace",
    )
    os.close(alive)
    for name in _PASSED_ON:
        if number := getattr(signal, name, None):
            signal.signal(number, lambda number, _: child.send_signal(number))
    fatal: list[str] = []
    for line in child.stderr or ():
        if fatal or _FATAL.match(line):
            fatal.append(line)
        else:
            print(line, end="", file=sys.stderr, flush=True)
    status = child.wait()
    os.close(held)
    if status == -signal.SIGABRT and fatal:
        tell(_reason("".join(fatal)))
        return 1
    print("".join(fatal), end="", file=sys.stderr)
    return status if status >= 0 else 128 - status


def _become_child(alive: int, errors: int) -> None:
    """Writes where the parent does, and ends when it is gone."""
    sys.stderr = os.fdopen(errors, "w", buffering=1)

    def wait() -> None:
        os.read(alive, 1)  # nothing is ever written: it returns when the parent has ended
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=wait, daemon=True).start()


def _reason(text: str) -> str:
    """What the runtime's lines say, in one."""
    if gone := re.search(r"stopped sending heartbeats\):\n([\d, \n]+)", text):
        numbers = ", ".join(re.findall(r"\d+", gone[1]))
        return f"process {numbers} ended or no longer answers, so this one ended too"
    if "RegisterTask" in text:
        return "not all processes came in time: expected each of them to be started"
    return "process 0 ended or no longer answers, so this one ended too"
