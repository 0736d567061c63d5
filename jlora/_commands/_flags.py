"""The flags that several commands share: which model, which adapter, how to answer."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple


class Adapted(NamedTuple):
    """A model that is ready to answer."""

    model: Any  # jlora.models.Model
    params: Any  # with the adapter merged
    system: list[dict[str, str]]  # the system message to begin with, if there is one


def add_model(command: argparse.ArgumentParser) -> None:
    """--model, --adapter and --dtype."""
    command.add_argument(
        "--model",
        metavar="",
        help="smollm2, a .gguf file, a Hugging Face folder or hub id (the adapter's own)",
    )
    command.add_argument("--adapter", metavar="", help="folder that jlora.checkpoint.save wrote")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the weights (the adapter's own)"
    )


def add_answer(command: argparse.ArgumentParser) -> None:
    """--system and --max-new-tokens."""
    command.add_argument(
        "--system", metavar="", help="system message (the one of the adapter's training)"
    )
    command.add_argument(
        "--max-new-tokens", type=positive, default=256, metavar="", help="longest answer (256)"
    )


def load_model(args: argparse.Namespace) -> Adapted:
    """The model of the flags: source, dtype and system message are the adapter's, unless given.

    Raises:
        ValueError: when model or adapter are missing or do not fit each other.
    """
    from jlora import checkpoint

    known = checkpoint.describe(args.adapter)["metadata"] if args.adapter else {}
    source = args.model or known.get("model")
    if source is None:
        raise ValueError("--model is missing, and no adapter says which it was trained on")
    import jlora
    from jlora import models

    model = models.load(source, dtype=args.dtype or known.get("dtype", "float32"))
    params = model.params
    if args.adapter:
        lora, _ = checkpoint.restore(args.adapter, base=params)
        params = jlora.merge(params, lora)
    system = args.system if args.system is not None else known.get("system")
    return Adapted(model, params, [{"role": "system", "content": system}] if system else [])


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number
