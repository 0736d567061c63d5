"""What a LoRA train step costs by each way to write it: the compiler's own figures.

    pip install qwix quax && python -m benchmarks.costs

Nothing runs: each step is compiled for this machine, and the compiler says its FLOPs, the bytes
that it reads and writes, its temporary memory and its arguments. The body of a loop is counted
once, so scanned models show one layer; ratios hold all the same. A peer that is not installed is
left out.
"""

import argparse
import dataclasses
import importlib.metadata

import jax

from benchmarks.costs._models import MODELS, costs
from benchmarks.costs._ways import RANK, installed


def main() -> None:
    """The table in Markdown, each figure as a multiple of the hand-written step's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), metavar="")
    print(
        "| | FLOPs | bytes read and written | temporary bytes | arguments |\n|---|---|---|---|---|"
    )
    for name in parser.parse_args().models:
        figures = costs(name)
        hand = figures.pop("by hand")
        sizes = (hand.bytes_accessed, hand.temporary, hand.arguments)
        cells = [f"{hand.flops / 1e9:.3f} G", *(f"{size / 1e6:.2f} MB" for size in sizes)]
        print(f"| **{name}**, by hand | {' | '.join(cells)} |")
        for way, its in figures.items():
            pairs = zip(dataclasses.astuple(its), dataclasses.astuple(hand), strict=True)
            print(f"| {way} | {' | '.join(f'{a / b:.3f}' for a, b in pairs)} |", flush=True)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "flax", "equinox"))
    peers = [f"{p} {importlib.metadata.version(p)}" for p in ("qwix", "quax") if installed(p)]
    print(f"\n{jax.default_backend()}; {versions}; {', '.join(peers) or 'no peers'}; rank {RANK}")


if __name__ == "__main__":
    main()
