"""What a LoRA train step costs by each way to write it: the compiler's own figures, and time.

    pip install qwix quax && python -m benchmarks.costs
    pip install qwix quax && python -m benchmarks.costs --rounds 15

The first runs nothing: each step is compiled for this machine, and the compiler says its FLOPs, the
bytes that it reads and writes and its temporary memory, as multiples of the hand-written step's,
and the bytes of its arguments. The body of a loop is counted once, so scanned models show one
layer; ratios hold all the same. The second takes so many steps of each way in turns and gives the
median ratio to the hand-written step of the same round, with the time to trace and to compile. A
peer that is not installed is left out.
"""

import argparse
import statistics
from collections.abc import Mapping

from benchmarks._shared.table import Table, add_save, versions
from benchmarks.costs._models import MODELS
from benchmarks.costs._step import step
from benchmarks.costs._timing import seconds

HAND, LIFT = "by hand", "jlora.lift"
# A column: the ways that stand in it, and how one that is not the column's own is named.
COLUMNS = {
    "everything trained": {"everything": ""},
    "W + A B under `grad`": {"W + A B under the gradient": ""},
    "`jlora.lift`": {LIFT: ""},
    "qwix": {"qwix": ""},
    "the framework's own": {
        "Flax's nnx.LoRALinear": "`nnx.LoRALinear` ",
        "quax's example": "quax's example ",
    },
}


def cells(figures: Mapping[str, str]) -> list[str]:
    """What stands in each column, of figures by way; nothing where none of its ways is there."""
    return [
        " ".join(f"{name}{figures[way]}" for way, name in ways.items() if way in figures)
        for ways in COLUMNS.values()
    ]


def costs_of(name: str) -> list[str]:
    """The model's row: each way's figures as multiples of the hand-written step's."""
    make, x = MODELS[name]
    costs = {way: step(its, x).cost for way, its in make().items()}
    hand = costs[HAND]
    ratios = {
        way: f"{its.flops / hand.flops:.3f} / {its.bytes_accessed / hand.bytes_accessed:.3f} / "
        f"{its.temporary / hand.temporary:.3f}"
        for way, its in costs.items()
    }
    reads = [costs[LIFT].arguments / costs[way].arguments for way in (HAND, "everything")]
    return [*cells(ratios), " / ".join(f"{share:.2f}" for share in reads)]


def times_of(name: str, rounds: int) -> list[str]:
    """The model's row: seconds by hand, each way's as multiples, and what it takes to begin."""
    make, x = MODELS[name]
    ways = make()
    steps = {way: step(its, x) for way, its in ways.items()}
    times = seconds(ways, steps, x, rounds)
    ratios = {
        way: statistics.median(a / b for a, b in zip(its, times[HAND], strict=True))
        for way, its in times.items()
    }
    begin = [
        f"{steps[HAND].trace_seconds:.1f} and {steps[LIFT].trace_seconds:.1f}",
        f"{steps[HAND].compile_seconds:.1f} and {steps[LIFT].compile_seconds:.1f}",
    ]
    shown = cells({way: f"{ratio:.2f}" for way, ratio in ratios.items()})
    return [f"{statistics.median(times[HAND]):.3f}", *shown, *begin]


def main() -> None:
    """The table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), metavar="")
    parser.add_argument("--rounds", type=int, default=0, help="steps to time; 0: costs alone")
    add_save(parser)
    given = parser.parse_args()
    if given.rounds == 1 or given.rounds < 0:
        parser.error(f"--rounds {given.rounds}: expected 0, or at least 2")
    columns = [*COLUMNS, "arguments of `lift`: by hand's / everything's"]
    if given.rounds:
        begin = ["seconds to trace, by hand and `lift`", "to compile"]
        columns = ["by hand, seconds", *COLUMNS, *begin]
    table = Table("", *columns)
    for name in given.models:
        row = times_of(name, given.rounds) if given.rounds else costs_of(name)
        table.row(name, *row)
    known = versions("jax", "flax", "equinox", "qwix", "quax")
    print(f"\n{known}")
    table.keep("costs-in-time" if given.rounds else "costs", given.save, known)


if __name__ == "__main__":
    main()
