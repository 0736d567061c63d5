"""Which method learns the default task best: train.py with each, over several seeds, as a table.

    python -m benchmarks.method_scores --out runs/methods --steps 160

Runs that are finished in --out are not repeated. All settings but the method's own are train.py's.
"""

import argparse
import statistics
from pathlib import Path

from benchmarks._shared.table import Table, add_save, versions
from benchmarks._shared.trained import scores

METHODS = {
    "LoRA": [],
    "rsLoRA": ["--rslora"],
    "DoRA": ["--method", "dora"],
    "PiSSA": ["--init", "pissa"],
    # the geometric mean of A's and B's rates is that of the others
    "LoRA+ (ratio 4)": ["--lora-plus", "4", "--learning-rate", "0.0015"],
}


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Trains what is missing and prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--seeds", type=int, default=3)
    add_save(parser)
    given = parser.parse_args()
    measured: dict[str, list[dict]] = {name: [] for name in METHODS}
    for seed in range(given.seeds):
        for name, flags in METHODS.items():
            common = ["--seed", str(seed), "--steps", str(given.steps)]
            out = given.out / f"{name.split()[0]}-{seed}"
            measured[name].append(scores(out, [*common, *flags]))
            after = measured[name][-1]["after"]
            print(f"{name}, seed {seed}: loss {after['loss']:.4f}, exact match "
                  f"{100 * after['exact_match']:.1f} %", flush=True)  # fmt: skip
    print()
    table = Table("", "exact match, %", "loss per token")
    for name, runs in measured.items():
        matches = [100 * run["after"]["exact_match"] for run in runs]
        losses = [run["after"]["loss"] for run in runs]
        table.row(name, spread(matches, 1), spread(losses, 3))
    table.keep("method-scores", given.save, versions("jax", "flax", "optax"))


if __name__ == "__main__":
    main()
