"""What a LoRA train step costs by each way to write it: the compiler's own figures, and time.

    pip install qwix quax && python -m benchmarks.costs
    pip install qwix quax && python -m benchmarks.costs --rounds 15

The first runs nothing: each step is compiled for this machine, and the compiler says its FLOPs, the
bytes that it reads and writes, its temporary memory and its arguments. The body of a loop is
counted once, so scanned models show one layer; ratios hold all the same. The second takes so many
steps of each way in turns and gives the median second and the median ratio to the hand-written
step of the same round, with the time to trace and to compile. A peer that is not installed is left
out.
"""

import argparse
import dataclasses
import importlib.metadata
import statistics

import jax

from benchmarks.costs._models import MODELS
from benchmarks.costs._step import step
from benchmarks.costs._timing import seconds
from benchmarks.costs._ways import RANK, installed

HAND = "by hand"


def costs_of(name: str) -> None:
    """The model's rows: each figure as a multiple of the hand-written step's."""
    make, x = MODELS[name]
    figures = {way: step(its, x).cost for way, its in make().items()}
    hand = figures.pop(HAND)
    sizes = (hand.bytes_accessed, hand.temporary, hand.arguments)
    cells = [f"{hand.flops / 1e9:.3f} G", *(f"{size / 1e6:.2f} MB" for size in sizes)]
    print(f"| **{name}**, {HAND} | {' | '.join(cells)} |")
    for way, its in figures.items():
        pairs = zip(dataclasses.astuple(its), dataclasses.astuple(hand), strict=True)
        print(f"| {way} | {' | '.join(f'{a / b:.3f}' for a, b in pairs)} |", flush=True)


def times_of(name: str, rounds: int) -> None:
    """The model's rows: seconds of a step, of its trace and of its compilation."""
    make, x = MODELS[name]
    ways = make()
    steps = {way: step(its, x) for way, its in ways.items()}
    times = seconds(ways, steps, x, rounds)
    for way in [HAND, *(way for way in ways if way != HAND)]:
        ratios = [a / b for a, b in zip(times[way], times[HAND], strict=True)]
        title = f"**{name}**, {HAND}" if way == HAND else way
        low, _, high = statistics.quantiles(ratios)
        print(
            f"| {title} | {statistics.median(times[way]):.3f} | {statistics.median(ratios):.2f} "
            f"({low:.2f} to {high:.2f}) | {steps[way].trace_seconds:.2f} | "
            f"{steps[way].compile_seconds:.2f} |",
            flush=True,
        )


def main() -> None:
    """The table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), metavar="")
    parser.add_argument("--rounds", type=int, default=0, help="steps to time; 0: costs alone")
    given = parser.parse_args()
    if given.rounds == 1 or given.rounds < 0:
        parser.error(f"--rounds {given.rounds}: expected 0, or at least 2 for quartiles")
    columns = ["FLOPs", "bytes read and written", "temporary bytes", "arguments"]
    if given.rounds:
        columns = ["seconds a step", "ratio (quartiles)", "seconds to trace", "to compile"]
    print(f"| | {' | '.join(columns)} |\n{'|---' * 5}|")
    for name in given.models:
        times_of(name, given.rounds) if given.rounds else costs_of(name)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "flax", "equinox"))
    peers = [f"{p} {importlib.metadata.version(p)}" for p in ("qwix", "quax") if installed(p)]
    print(f"\n{jax.default_backend()}; {versions}; {', '.join(peers) or 'no peers'}; rank {RANK}")


if __name__ == "__main__":
    main()
