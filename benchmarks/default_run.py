"""What `python train.py` alone gives: its scores before and after, over several seeds.

    pip install -e ".[train]" && python -m benchmarks.default_run

A seed takes a few minutes on two CPU cores. Time and memory are the run's own, both measurements
included; tokens/s are those of training alone, without padding.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from benchmarks._shared.table import Table, add_save, versions
from benchmarks._shared.trained import TRAIN
from jlora import trainer

ENDS = re.compile(r"([\d.]+) minutes, (.+) of memory at most\s*$")
COLUMNS = (
    "seed",
    "loss per token before",
    "after",
    "exact match before",
    "after",
    "minutes, with both measurements",
    "tokens/s in training",
    "memory at most",
)


def trained(out: Path, seed: int) -> list[str]:
    """The row of one run, which is begun anew."""
    flags = ["--seed", str(seed), "--out", str(out), "--overwrite"]
    command = [sys.executable, str(TRAIN), *flags]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    ends = ENDS.search(told)
    minutes, memory = ends.groups() if ends else ("", "")
    steps = trainer.read_metrics(out / "metrics.jsonl")
    speed = sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    scores = [results["before"], results["after"]]
    losses = [f"{score['loss']:.3f}" for score in scores]
    matches = [f"{100 * score['exact_match']:.1f} %" for score in scores]
    return [str(seed), *losses, *matches, minutes, f"{speed:.0f}", memory]


def main() -> None:
    """The table in Markdown, a row as soon as its run is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/default"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    add_save(parser)
    given = parser.parse_args()
    table = Table(*COLUMNS)
    for seed in given.seeds:
        table.row(*trained(given.out / str(seed), seed))
    table.keep("default-run", given.save, versions("jax", "flax", "optax"))


if __name__ == "__main__":
    main()
