"""What a train step needs and moves on TPU slices and H100s, by their own compilers, without them.

    pip install -e ".[ahead]" && python -m benchmarks.ahead

Nothing runs, and shapes are all that is read. For each model and each generation it begins with the
smallest slice on which weights and optimizer state alone would fit, and goes up until the compiled
step fits: LoRA of rank 16 on all linear layers, then full fine-tuning. A compilation takes half a
minute to five. `--models 8B --slices v5e:4x4 h100:1` compiles these alone, fitting or not;
`--table quantised` says what LoRA needs on one chip with its base in a few bits;
`--table collectives` says what these programs move between chips, and what they would have to;
`--table scaling` says what more chips change, by theory, and compiles nothing. `--programs FOLDER`
keeps what was compiled, and reads it there.
"""

import argparse
import itertools
import os
from pathlib import Path

# Before JAX starts: no device is asked for, and none is here that two processes could not share.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
# More devices than one, as on a slice: `jlora.lift` writes some products otherwise for one alone.
os.environ["JAX_NUM_CPU_DEVICES"] = "2"

from benchmarks._shared.table import Table, add_save, versions
from benchmarks.ahead import _tables
from benchmarks.ahead._compiled import held, program
from benchmarks.ahead._slices import SLICES
from benchmarks.ahead._steps import PLAIN, SHARING, STEPS
from benchmarks.ahead._tables import Case

TABLES = {
    "memory": ("ahead", _tables.MEMORY),
    "quantised": ("ahead-quantised", _tables.QUANTISED),
    "collectives": ("ahead-collectives", _tables.COLLECTIVES),
    "scaling": ("ahead-scaling", _tables.SCALING),
}
BASES = (PLAIN, "int8", "nf4", "Q4_K")
ALONE = ("h100", "v5e")  # one chip of each


def main() -> None:
    """The table in Markdown, each row as soon as it is known."""
    every = [str(each) for slices in SLICES.values() for each in slices]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", choices=TABLES, default="memory")
    parser.add_argument("--models", nargs="*", choices=SHARING, default=list(SHARING), metavar="")
    parser.add_argument("--slices", nargs="*", choices=every, metavar="", help="these alone")
    parser.add_argument("--generations", nargs="*", choices=SLICES, default=list(SLICES))
    parser.add_argument("--trains", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--programs", type=Path, metavar="FOLDER", help="keeps what is compiled")
    parser.add_argument("--bases", nargs="*", choices=BASES, default=list(BASES), metavar="")
    add_save(parser)
    given = parser.parse_args()
    name, columns = TABLES[given.table]
    table = Table(*columns)
    chosen = [each for s in SLICES.values() for each in s if str(each) in (given.slices or ())]
    if given.table == "quantised":
        alone = chosen or [SLICES[generation][0] for generation in ALONE]
        for model, each, base in itertools.product(given.models, alone, given.bases):
            case = Case(model, "LoRA", each, base)
            if chosen or sum(held(case.step())) < each.memory:
                add(table, case, given)
    else:
        for model, trains in itertools.product(given.models, given.trains):
            if given.table == "scaling":
                _tables.scaling_rows(table, model, trains)
                continue
            for each in chosen:
                add(table, Case(model, trains, each), given)
            for generation in () if chosen else given.generations:
                walk(table, model, trains, generation, given)
    known = versions("jax", "libtpu", "jax-cuda12-plugin", "flax", "optax")
    table.keep(name, given.save, known)
    print(f"\n{known}. *: some products in loops over chips, each counted once")


def walk(table: Table, model: str, trains: str, generation: str, given: argparse.Namespace) -> None:
    """From the first slice that can hold what stays between steps, up to the first that fits."""
    for each in SLICES[generation]:
        case = Case(model, trains, each)
        if sum(held(case.step())) < each.memory and add(table, case, given):
            return


def add(table: Table, case: Case, given: argparse.Namespace) -> bool:
    """One row, if there is one to add; whether the step fits."""
    step = case.step()
    kept = given.programs and given.programs / f"{case.name}.json"
    its = program(step, kept)
    if given.table == "quantised":
        _tables.quantised_row(table, case, step, its)
        return False
    if given.table == "memory":
        return _tables.memory_row(table, case, step, its).fits
    _tables.collectives_row(table, case, step, its)
    return its.temporary is not None and its.peak <= case.on.memory


if __name__ == "__main__":
    main()
