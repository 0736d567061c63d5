"""How the time and memory of a LoRA train step grow with rank, layers and length, beside theory.

    pip install -e ".[train]" && python -m benchmarks.growth

A small llama (width 256, MLP 768, 2 heads, vocabulary 1024; one row of text, float32) with LoRA on
every linear layer, AdamW. Each grid varies one thing; the others stay at rank 16, 2 layers, 256
tokens, the base point. Points take turns, one step each a round, so that a machine that slows down
slows all of them. Memory is the compiler's own figure for the step, temporaries and arguments;
FLOPs are those of the traced step's products, the layers' scan counted as often as it runs.

Theory is `_theory.py`: memory counted from the shape (it says what was read off the compiler), time
as FLOPs over a rate that is taken at the base point alone.
"""

import argparse
import dataclasses
import os
import platform
import statistics
from pathlib import Path

from benchmarks._shared.table import Table, add_save, versions
from benchmarks._shared.turns import seconds_in_turns
from benchmarks.growth import _theory
from benchmarks.growth._figure import draw
from benchmarks.growth._step import LLAMA, Cost, Point, step_of

BASE = Point()
GRIDS = {
    name: [dataclasses.replace(BASE, **{name: value}) for value in values]
    for name, values in {
        "rank": (1, 4, 16, 64, 256),
        "layers": (2, 4, 8, 16, 32, 64),
        "length": (128, 256, 512, 1024, 2048, 4096),
    }.items()
}


def main() -> None:
    """Prints the table in Markdown, writes growth.png."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/growth"), metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each point that are timed")
    add_save(parser)
    given = parser.parse_args()
    steps = {point: step_of(point) for points in GRIDS.values() for point in points}
    runs = {point: step.run for point, step in steps.items()}
    seconds = seconds_in_turns(runs, given.rounds)
    measured = {
        point: Cost(statistics.median(seconds[point]), step.memory) for point, step in steps.items()
    }
    flops = {point: _theory.flops(point.config, point.rank, point.length) for point in steps}
    rate = flops[BASE] / measured[BASE].seconds
    theory = {p: Cost(flops[p] / rate, _theory.memory(p.config, p.rank, p.length)) for p in steps}
    share = "of theory's"
    table = Table("", "seconds a step", share, "memory, MB", share, "GFLOP", share)
    for name, points in GRIDS.items():
        for point in points:
            its, expected, counted = measured[point], theory[point], steps[point].flops
            table.row(
                f"{name} {getattr(point, name)}",
                f"{its.seconds:.3f}",
                f"{its.seconds / expected.seconds:.2f}",
                f"{its.memory / 1e6:.0f}",
                f"{its.memory / expected.memory:.2f}",
                f"{counted / 1e9:.2f}",
                f"{counted / flops[point]:.2f}",
            )
    notes = {
        "title": f"A LoRA train step of a llama of width {LLAMA.width}; where it does not vary: "
        f"rank {BASE.rank}, {BASE.layers} layers, {BASE.length} tokens",
        "seconds": f"FLOPs / {rate / 1e9:.0f} GFLOP/s",
        "memory": "counted from the shape",
        "footer": f"{machine()}; median of {given.rounds} steps",
    }
    print(f"\n{notes['footer']}; {rate / 1e9:.1f} GFLOP/s at the base point")
    table.keep("growth", given.save, versions("jax", "flax"))
    given.out.mkdir(parents=True, exist_ok=True)
    draw(given.out / "growth.png", BASE, GRIDS, measured, theory, notes)


def machine() -> str:
    """The processor and the versions."""
    processor = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return f"{os.cpu_count()} CPU cores ({processor}), {versions('jax', 'jlora')}"


if __name__ == "__main__":
    main()
