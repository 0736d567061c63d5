"""Talk with a model at a terminal, with a saved adapter or without.

The history is the conversation: what the model is asked is all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from jlora._commands import _flags

HELP = "/reset begins anew, /system TEXT sets the system message, /quit ends"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of ``chat``."""
    _flags.add_model(command)
    _flags.add_quantize(command)
    _flags.add_mesh(command)
    _flags.add_answer(command)


def run(args: argparse.Namespace) -> None:
    """Answers each line of stdin on stdout until it ends; notices go to stderr.

    Raises:
        ValueError: when a flag is out of its range; when model or adapter are missing or do not fit
            each other.
    """
    from jlora import models

    options = _flags.answer_options(args)
    adapted = _flags.load_model(args)
    options["memory"] = models.Memory()
    system, history = adapted.system, []
    if sys.stdin.isatty():
        _notice(f"{adapted.model.name}: {HELP}, Ctrl-C stops an answer")
    for line in _lines():
        command, _, text = line.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            history = []
        elif command == "/system":
            system = [{"role": "system", "content": text.strip()}] if text.strip() else []
        elif line.startswith("/"):
            _notice(f"{command} is no command: {HELP}")
        else:
            history = _answered(adapted, system, history, line, options)


def _answered(
    adapted: _flags.Adapted,
    system: list[dict[str, str]],
    history: list[dict[str, str]],
    question: str,
    options: dict[str, Any],
) -> list[dict[str, str]]:
    """The history with the question and its answer, which is printed as it is written.

    An answer that Ctrl-C stopped stands as far as it came; a question without one is left out.
    """
    from jlora import models

    asked = [*history, {"role": "user", "content": question}]
    pieces: list[str] = []
    try:
        for piece in models.stream(adapted.model, [*system, *asked], *adapted.weights, **options):
            pieces.append(piece)
            print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        if not pieces:
            return history
    except ValueError as error:
        _notice(f"{error}; /reset begins anew")
        return history
    return [*asked, {"role": "assistant", "content": "".join(pieces)}]


def _lines() -> Iterator[str]:
    """The lines of stdin that are not blank; a person gets a prompt and can edit them."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 - input() uses it
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            if sys.stdin.isatty():
                print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if line:
            yield line


def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
