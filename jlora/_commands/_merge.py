"""Merge an adapter into its model, layer by layer: a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from jlora._commands import _flags, _merge_gguf
from jlora._weighted import Weighted

_SHARD = 5 * 10**9  # bytes
_STORED = "stored"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of ``merge``."""
    _flags.add_model(
        command,
        adapter_required=True,
        dtypes=("float32", "bfloat16", "float16"),
        dtype_of="the model's files' own, float32 from GGUF",
    )
    command.add_argument(
        "--out", required=True, metavar="", help="the folder to write, or the .gguf file"
    )
    command.add_argument(
        "--format",
        choices=("huggingface", "gguf"),
        default="huggingface",
        help="a folder, or the base's own GGUF file with other weights (huggingface)",
    )
    command.add_argument(
        "--max-shard-size",
        type=bytes_in,
        metavar="",
        help="largest weight file, such as 500MB (5GB)",
    )
    command.add_argument(
        "--type",
        metavar="",
        help="of the adapted tensors in a GGUF file: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, F16, BF16, F32 "
        "(each one's own)",
    )
    command.add_argument(
        "--eval-data",
        metavar="",
        help="rows on which to measure a GGUF file beside its base and the adapter, as train's",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a folder that merge wrote, or a GGUF file, once the new one is complete",
    )


def run(args: argparse.Namespace) -> None:
    """Writes ``args.out`` and says what is in it.

    Raises:
        ValueError: when model or adapter are missing or do not fit each other.
        OSError: when the folder can't be written.
    """
    from jlora import _info, models

    _merge_gguf.check(args)
    directories = _flags.folders_of(args.adapter)
    source, _ = _flags.source_and_training(args, directories)
    adapter = _flags.load_adapters(args.adapter, directories, source)
    if args.format == "gguf":
        lines = _merge_gguf.write(args, directories, source, adapter)
        print(_info.text(_info.facts(args.out)), "", *lines, *_of_base(adapter), sep="\n")
        return
    out = models.export(
        source,
        args.out,
        lora=adapter.lora,
        base=adapter.bases,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_size or _SHARD,
        overwrite=args.overwrite,
        metadata={"adapter": _named(args.adapter)},
        keep=tuple(directories),
        vocabulary=adapter.vocabulary,
        labels=adapter.labels,
        tokenizer_of=directories[0],
    )
    print(_info.text(_info.facts(out)), *_of_base(adapter), sep="\n")


def _of_base(adapter: Any) -> list[str]:
    """That the weights merged into are others than those that were trained beside, if they are."""
    how = adapter.metadata.get("quantize", _STORED)
    if how == _STORED:  # what a file stores is what it means
        return []
    return [
        f"the adapter was trained beside weights rounded to {how}; the merged ones are the model's "
        "own, which are close to them and not the same"
    ]


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
