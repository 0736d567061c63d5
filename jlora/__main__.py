"""``python -m jlora generate``: an answer from a model, with a saved adapter or without."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jlora import checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 for bad input."""
    args = _parse(argv)
    try:
        print(generate(args))
    except ValueError as error:
        print(f"jlora generate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def generate(args: argparse.Namespace) -> str:
    """The model's answer to ``args.prompt``.

    Model, dtype and system message are those that the adapter was trained with, unless given.

    Raises:
        ValueError: when model or adapter are missing or do not fit each other.
    """
    known = checkpoint.describe(args.adapter)["metadata"] if args.adapter else {}
    source = args.model or known.get("model")
    if source is None:
        raise ValueError("--model is missing, and no adapter says which it was trained on")
    # Heavy, and only needed now that the flags are known to make sense.
    import jlora
    from jlora import models

    model = models.load(source, dtype=args.dtype or known.get("dtype", "float32"))
    params = model.params
    if args.adapter:
        lora, _ = checkpoint.restore(args.adapter, base=params)
        params = jlora.merge(params, lora)
    system = args.system if args.system is not None else known.get("system")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": args.prompt})
    return models.answer(model, [messages], params, max_new_tokens=args.max_new_tokens)[0]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jlora", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="generate")
    command = commands.add_parser("generate", help="answer a prompt", allow_abbrev=False)
    command.add_argument(
        "--model",
        metavar="",
        help="smollm2, a .gguf file, a Hugging Face folder or hub id (the adapter's own)",
    )
    command.add_argument("--adapter", metavar="", help="folder that jlora.checkpoint.save wrote")
    command.add_argument("--prompt", required=True, metavar="", help="what to answer")
    command.add_argument(
        "--system", metavar="", help="system message (the one of the adapter's training)"
    )
    command.add_argument(
        "--max-new-tokens", type=_positive, default=256, metavar="", help="longest answer (256)"
    )
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the weights (the adapter's own)"
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
