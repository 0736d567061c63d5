"""Merge an adapter into its model, layer by layer, and write that as a Hugging Face folder."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from jlora._commands import _flags
from jlora._weighted import Weighted

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of ``merge``."""
    _flags.add_model(
        command,
        adapter_required=True,
        dtypes=("float32", "bfloat16", "float16"),
        dtype_of="the model's files' own, float32 from GGUF",
    )
    command.add_argument("--out", required=True, metavar="", help="the folder to write")
    command.add_argument(
        "--max-shard-size",
        type=bytes_in,
        default="5GB",
        metavar="",
        help="largest weight file, such as 500MB (5GB)",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a folder that merge wrote, once the new one is complete",
    )


def run(args: argparse.Namespace) -> None:
    """Writes ``args.out`` and says what is in it.

    Raises:
        ValueError: when model or adapter are missing or do not fit each other.
        OSError: when the folder can't be written.
    """
    from jlora import _info, models

    directories = _flags.folders_of(args.adapter)
    source, _ = _flags.source_and_training(args, directories)
    adapter = _flags.load_adapters(args.adapter, directories, source)
    out = models.export(
        source,
        args.out,
        lora=adapter.lora,
        base=adapter.bases,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_size,
        overwrite=args.overwrite,
        metadata={"adapter": _named(args.adapter)},
        keep=tuple(directories),
        vocabulary=adapter.vocabulary,
        labels=adapter.labels,
        tokenizer_of=directories[0],
    )
    print(_info.text(_info.facts(out)))


def _named(adapters: Sequence[Weighted]) -> str:
    """The adapters as flags name them, weights of 1 left out."""
    each = (its.name if its.weight == 1 else f"{its.name}={its.weight:g}" for its in adapters)
    return ", ".join(each)


def bytes_in(text: str) -> int:
    """A size such as 500MB in bytes, for argparse."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]B)?", text.upper())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: expected one such as 500MB or 5GB")
    size = int(float(found[1]) * _UNITS[found[2] or ""])
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than a byte")
    return size
