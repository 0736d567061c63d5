"""The flags that several commands share: which model, which adapter, how to answer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Adapted(NamedTuple):
    """A model that is ready to answer."""

    model: Any  # jlora.models.Model
    params: Any  # with the adapter merged
    system: list[dict[str, str]]  # the system message to begin with, if there is one


class Adapter(NamedTuple):
    """A saved adapter, and what was saved beside it."""

    lora: Any
    base: Any  # the fingerprint of the base, if it was saved
    metadata: dict[str, Any]


def add_model(
    command: argparse.ArgumentParser,
    *,
    adapter_required: bool = False,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    dtype_of: str = "the adapter's own",
) -> None:
    """--model, --adapter and --dtype."""
    command.add_argument(
        "--model",
        metavar="",
        help="smollm2, a .gguf file, a Hugging Face folder or hub id (the adapter's own)",
    )
    command.add_argument(
        "--adapter",
        metavar="",
        required=adapter_required,
        help="folder that jlora.checkpoint.save wrote",
    )
    command.add_argument("--dtype", choices=dtypes, help=f"of the weights ({dtype_of})")


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
    source = source_of(args, known)
    import jlora
    from jlora import models

    model = models.load(source, dtype=args.dtype or known.get("dtype", "float32"))
    params = model.params
    if args.adapter:
        lora, _ = checkpoint.restore(args.adapter, base=params)
        params = jlora.merge(params, lora)
    system = args.system if args.system is not None else known.get("system")
    return Adapted(model, params, [{"role": "system", "content": system}] if system else [])


def load_adapter(directory: str) -> Adapter:
    """The adapter in a folder.

    Raises:
        ValueError: when there is none, or it is damaged.
    """
    from jlora import checkpoint

    description = checkpoint.describe(directory)
    lora, _ = checkpoint.restore(directory)
    return Adapter(lora, description["base"], description["metadata"])


def source_of(args: argparse.Namespace, known: Mapping[str, Any]) -> str:
    """--model, or the one that the adapter's metadata names.

    Raises:
        ValueError: when neither says.
    """
    source = args.model or known.get("model")
    if source is None:
        raise ValueError("--model is missing, and no adapter says which it was trained on")
    return source


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number
