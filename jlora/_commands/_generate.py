"""Answer a prompt with a model, with a saved adapter or without."""

from __future__ import annotations

import argparse
import sys

from jlora._commands import _flags


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of ``generate``."""
    _flags.add_model(command)
    _flags.add_quantize(command)
    _flags.add_mesh(command)
    command.add_argument("--prompt", required=True, metavar="", help="what to answer")
    _flags.add_answer(command)
    command.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print the answer as it is written (at a terminal)",
    )


def run(args: argparse.Namespace) -> None:
    """Prints the model's answer to ``args.prompt``.

    Raises:
        ValueError: when a flag is out of its range; when model or adapter are missing or do not fit
            each other.
    """
    from jlora import models

    options = _flags.answer_options(args)
    adapted = _flags.load_model(args)
    messages = [*adapted.system, {"role": "user", "content": args.prompt}]
    if sys.stdout.isatty() if args.stream is None else args.stream:
        for piece in models.stream(adapted.model, messages, *adapted.weights, **options):
            print(piece, end="", flush=True)
        print()
    else:
        print(models.answer(adapted.model, [messages], *adapted.weights, **options)[0])
