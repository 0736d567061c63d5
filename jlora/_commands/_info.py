"""Say what a folder, a file or a hub id holds: an adapter, a run, a model, and if it loads."""

from __future__ import annotations

import argparse
import json


def add_flags(command: argparse.ArgumentParser) -> None:
    """The folder, and the flags of ``info``."""
    command.usage = "%(prog)s WHAT [--json]"
    command.add_argument(
        "directory",
        metavar="WHAT",
        help="an adapter of jlora, PEFT, mlx-lm or llama.cpp, a run of train.py, or a model: a "
        "folder, a .gguf file or a hub id",
    )
    command.add_argument("--json", action="store_true", help="the same as JSON")


def run(args: argparse.Namespace) -> None:
    """Prints what ``args.directory`` holds.

    Raises:
        ValueError: when it is nothing that jlora knows, or damaged.
    """
    from jlora import _info

    known = _info.facts(args.directory)
    print(json.dumps(known, indent=2, ensure_ascii=False) if args.json else _info.text(known))
