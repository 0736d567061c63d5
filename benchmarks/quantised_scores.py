"""Does an adapter learn as well beside a base in a few bits: train.py with each, over seeds.

    python -m benchmarks.quantised_scores --out runs/quantised

Runs that are finished in --out are not repeated. Every base trains and is measured on the same rows
in the same order from the same start of A, so that a seed's difference to float32 is the base's
alone. float32 is SmolLM2's GGUF file decoded, and stored the same numbers in the file's own bytes.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks._shared.table import Table, add_save, versions
from benchmarks._shared.trained import scores

BASES = {"float32": "none", "stored": "stored", "int8": "int8", "nf4": "nf4"}
COLUMNS = (
    "base",
    "seed",
    "loss untouched",
    "loss trained",
    "exact match, %",
    "less float32's, points",
)


def row(
    name: str, seed: str, its: list[dict[str, Any]], plain: list[dict[str, Any]]
) -> tuple[str, ...]:
    """Means over the runs of a base, beside those of float32 of the same seeds."""
    before = statistics.mean(run["before"]["loss"] for run in its)
    after = statistics.mean(run["after"]["loss"] for run in its)
    match, other = (
        statistics.mean(100 * run["after"]["exact_match"] for run in runs) for runs in (its, plain)
    )
    return (
        name, seed, f"{before:.3f}", f"{after:.4f}", f"{match:.1f}", f"{match - other:+.1f}",
    )  # fmt: skip


def main() -> None:
    """Trains what is missing and prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quantised"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=640, help="held-out rows")
    parser.add_argument("--bases", nargs="*", choices=BASES, default=[*BASES])
    add_save(parser)
    given = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in given.bases}
    table = Table(*COLUMNS)
    for seed in range(given.seeds):
        for name in given.bases:
            flags = ["--seed", str(seed), "--eval-rows", str(given.rows), "--quantize", BASES[name]]
            runs[name].append(scores(given.out / f"{name}-{seed}", flags))
            table.row(*row(name, str(seed), runs[name][-1:], runs[given.bases[0]][-1:]))
    for name, its in runs.items():
        table.row(*row(name, "mean", its, runs[given.bases[0]]))
    table.keep("quantised-scores", given.save, versions("jax", "flax", "optax"))


if __name__ == "__main__":
    main()
