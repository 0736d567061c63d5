"""What ``merge --format gguf`` does: write the file, and tell how much of the adapter is in it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jlora._commands import _adapters
from jlora._info import _text

LOW = 0.9  # of a change: below it the file is told to be nearly its base
_WAYS = (
    "What loses nothing: a LoRA file beside the base (export --format gguf-lora); an adapter "
    "trained with --method qalora, whose change the minima of Q4_1 and Q5_1 hold; or a finer "
    "--type, such as Q8_0 or F16."
)


def check(args: argparse.Namespace) -> None:
    """Raises a ValueError where a flag is the other format's."""
    of_folder = {"--dtype": args.dtype, "--max-shard-size": args.max_shard_size}
    of_file = {"--type": args.type, "--eval-data": args.eval_data}
    others = of_folder if args.format == "gguf" else of_file
    if wrong := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"--format {args.format} has no {' and no '.join(wrong)}")


def write(
    args: argparse.Namespace,
    directories: Sequence[Path],
    source: str,
    adapter: _adapters.Adapter,
) -> list[str]:
    """Writes ``args.out``; the lines that say what is in it.

    Raises:
        ValueError: when model or adapter do not fit each other or the file.
        OSError: when the file can't be written.
    """
    from jlora import models
    from jlora.models._files._gguf_plan import UnwritableError

    try:
        merged = models.export_gguf(
            source,
            args.out,
            lora=adapter.lora,
            base=adapter.bases,
            type=args.type,
            overwrite=args.overwrite,
            keep=tuple(directories),
            vocabulary=adapter.vocabulary,
        )
    except UnwritableError as error:
        raise ValueError(f"{error}. Give one with --type") from None
    lines = survivals(merged.survivals, merged.survival)
    base = models.outline(source)
    if models.with_tokenizer(base, directories[0]).tokenizer.template != base.tokenizer.template:
        lines += ["", f"{directories[0]} has a chat template of its own; the file has its base's."]
    if args.eval_data is not None:
        lines += ["", *_losses(args.eval_data, source, adapter.lora, merged.path)]
    return lines


def survivals(of_each: Mapping[str, float], of_all: float) -> list[str]:
    """How much of the change is left after rounding, to be read."""
    rows = [*of_each.items(), ("all", of_all)]
    lines = _text.table(("kept after rounding", ""), [(name, f"{x:.3f}") for name, x in rows])
    if of_all >= LOW:
        return lines
    return [
        *lines,
        "",
        f"Of what the adapter changes {of_all:.0%} is in the file, which so nearly is its base. "
        + _WAYS,
    ]


def _losses(rows: str, source: str, lora: Mapping[str, Any], out: Path) -> list[str]:
    """The loss a token of the answers in these rows: of the base, adapted, and of the file."""
    import jax

    import jlora
    from jlora import data, models, trainer

    model = models.load(source)
    examples, _ = data.encode(data.read_rows(rows), model.tokenizer, max_length=_LONGEST)
    batches = data.Batches(examples, batch_size=8, shuffle=False)

    @jax.jit
    def pair(params, _, batch):
        return models.answer_loss(model, params, batch)

    def loss(params):
        each = map(batches, range(batches.per_epoch))
        return trainer.mean_loss(pair, params, {}, each)

    losses = {
        "loss of the base": loss(model.params),
        "with the adapter": loss(jlora.merge(model.params, lora)),
        "of the file": loss(models.load(out).params),
    }
    return _text.pairs({name: f"{value:.4f}" for name, value in losses.items()})


_LONGEST = 1024  # tokens of a row
