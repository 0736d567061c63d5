"""The flags that several commands share: which model, which adapter, how to answer."""

from __future__ import annotations

import argparse
from pathlib import Path
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
    command.add_argument(
        "--adapter", metavar="", help="folder that jlora.checkpoint.save or PEFT wrote"
    )
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
    known = _described(Path(args.adapter)) if args.adapter else {}
    source = args.model or known.get("model")
    if source is None:
        raise ValueError("--model is missing, and no adapter says which it was trained on")
    import jlora
    from jlora import models

    model = models.load(source, dtype=args.dtype or known.get("dtype", "float32"))
    params = model.params
    if args.adapter:
        params = jlora.merge(params, _adapter(Path(args.adapter), model))
    system = args.system if args.system is not None else known.get("system")
    return Adapted(model, params, [{"role": "system", "content": system}] if system else [])


def _described(directory: Path) -> dict[str, Any]:
    """What the adapter says of its training: model, dtype, system message."""
    if _is_peft(directory):
        from jlora import peft

        return {"model": peft.describe(directory)["base_model_name_or_path"]}
    from jlora import checkpoint

    return checkpoint.describe(directory)["metadata"]


def _adapter(directory: Path, model: Any) -> Any:
    """The adapter in the folder, of either format."""
    from jlora import checkpoint, peft

    if _is_peft(directory):
        return peft.load(directory, model)[0]
    return checkpoint.restore(directory, base=model.params)[0]


def _is_peft(directory: Path) -> bool:
    """Whether a folder holds PEFT's files; jlora's own come first."""
    return (
        not (directory / "adapter.json").exists() and (directory / "adapter_config.json").exists()
    )


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number
