"""Asks the one child process for rendered templates, and ends it when an answer takes too long."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jlora._requires import requires

SECONDS = 4.0  # for one conversation, which takes milliseconds
_TO_START = 60.0
_PROGRAM = Path(__file__).with_name("_render_child.py")


class Rendered(NamedTuple):
    """A conversation as its template writes it."""

    text: str
    generated: list[tuple[int, int]] | None  # what {% generation %} encloses, if the template does


class RefusedError(ValueError):
    """A template that does not take these messages, in its own words."""


def rendered(template: str, variables: Mapping[str, Any], *, now: str) -> Rendered:
    """What the template writes of the variables; ``now`` is what it takes for the present.

    Raises:
        RefusedError: when it raises an error or can't be compiled.
        ValueError: when it takes too long, or its process can't be kept.
    """
    requires("jinja2")
    request = json.dumps({"template": template, "variables": variables, "now": now})
    with _LOCK:
        # once more with a new one, since a machine may have stood still just then
        reply = _child().ask(request) or _child().ask(request)
    if reply is None:
        raise ValueError(f"it did not end within {SECONDS:g} seconds, or ended its process")
    if "error" in reply:
        raise RefusedError(reply["error"])
    spans = reply["generated"]
    return Rendered(reply["text"], None if spans is None else [(a, b) for a, b in spans])


class _Child:
    def __init__(self):
        found = [part for part in sys.path if part]
        self.process = subprocess.Popen(
            [sys.executable, str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},  # finds the same jinja2
            start_new_session=True,
        )
        self.owner = os.getpid()
        self.alive = self._line(_TO_START) is not None

    def ask(self, request: str) -> dict[str, Any] | None:
        """The answer, or None when there was none in time: then the process is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(request.encode() + b"\n")
            self.process.stdin.flush()
            line = self._line(SECONDS)
        except OSError:
            line = None
        except BaseException:  # interrupted: its answer would be taken for the next one
            self.end()
            raise
        if line is None:
            self.end()
            return None
        return json.loads(line)

    def _line(self, seconds: float) -> bytes | None:
        assert self.process.stdout is not None
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            return self.process.stdout.readline() or None
        finally:
            timer.cancel()

    def end(self) -> None:
        """Ends the process and closes its pipes."""
        self.alive = False
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not sent yet can't be any more
                pipe.close()
        self.process.wait()


_LOCK = threading.Lock()
_children: list[_Child] = []  # none, or the one


def _child() -> _Child:
    """The process; a new one where there is none, or where it belongs to a forked parent."""
    if not (_children and _children[0].alive and _children[0].owner == os.getpid()):
        _children[:] = [_Child()]
    return _children[0]


@atexit.register
def _end() -> None:
    if _children and _children[0].owner == os.getpid() and _children[0].alive:
        _children[0].end()
