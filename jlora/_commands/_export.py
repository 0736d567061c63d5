"""Write a saved adapter in the format of PEFT, mlx-lm, llama.cpp or Ollama."""

from __future__ import annotations

import argparse
from pathlib import Path

from jlora._commands import _flags


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of ``export``."""
    _flags.add_model(command, adapter_required=True, with_dtype=False)
    command.add_argument(
        "--out", required=True, metavar="", help="the folder to write; of gguf-lora the file"
    )
    command.add_argument(
        "--format",
        choices=("peft", "mlx", "gguf-lora", "ollama"),
        default="peft",
        help="PEFT's, mlx-lm's, llama.cpp's or Ollama's format (peft)",
    )
    command.add_argument(
        "--base-model",
        metavar="",
        help="the base's name to write, such as owner/name, or Ollama's own name of it (--model)",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace an adapter there; other files stay"
    )


def run(args: argparse.Namespace) -> None:
    """Writes ``args.out`` and says what is in it.

    Raises:
        ValueError: when model or adapter are missing or do not fit each other, or the format has
            nothing like a part of the adapter.
        OSError: when the folder can't be written.
    """
    from jlora import _info, peft

    directories = _flags.folders_of(args.adapter)
    source, _ = _flags.source_and_training(args, directories)
    adapter = _flags.load_adapters(args.adapter, directories, source)
    if adapter.vocabulary.more:
        raise ValueError(
            f"{directories[0]} adds {adapter.vocabulary.more} tokens to its base, whose tables "
            "jlora writes in a merged model alone: python -m jlora merge"
        )
    peft.publish(
        args.out,
        adapter.lora,
        adapter.config,
        _flags.model_for(adapter, source),
        format=args.format,
        about=adapter.metadata,
        scores=_scores(directories[0]) if len(directories) == 1 else {},
        tokenizer_of=directories[0],
        base_model=args.base_model,
        overwrite=args.overwrite,
    )
    print(_info.text(_info.facts(args.out)))


def _scores(directory: Path) -> dict[str, object]:
    """What the run that wrote the adapter measured, where the adapter still stands in it."""
    from jlora import trainer

    run = directory.parent
    return (trainer.Run(run).recorded("results") or {}) if (run / "run.json").exists() else {}
