"""Answer a prompt with a model, with a saved adapter or without."""

from __future__ import annotations

import argparse

from jlora._commands import _flags


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of ``generate``."""
    _flags.add_model(command)
    command.add_argument("--prompt", required=True, metavar="", help="what to answer")
    _flags.add_answer(command)


def run(args: argparse.Namespace) -> None:
    """Prints the model's answer to ``args.prompt``.

    Raises:
        ValueError: when model or adapter are missing or do not fit each other.
    """
    from jlora import models

    adapted = _flags.load_model(args)
    messages = [*adapted.system, {"role": "user", "content": args.prompt}]
    print(
        models.answer(
            adapted.model, [messages], adapted.params, max_new_tokens=args.max_new_tokens
        )[0]
    )
