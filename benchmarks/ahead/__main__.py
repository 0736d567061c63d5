"""What a train step needs on TPU slices and H100s, by their own compilers and without them.

    pip install -e ".[ahead]" && python -m benchmarks.ahead

Nothing runs, and shapes are all that is read. For each model and each generation it begins with the
smallest slice on which weights and optimizer state alone would fit, and goes up until the compiled
step fits: LoRA of rank 16 on all linear layers, then full fine-tuning. A compilation takes half a
minute to three. `--models 8B --slices v5e:4x4 h100:1` compiles these alone, fitting or not.
"""

import argparse
import os

# Before JAX starts: no device is asked for, and none is here that two processes could not share.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
# More devices than one, as on a slice: `jlora.lift` writes some products otherwise for one alone.
os.environ["JAX_NUM_CPU_DEVICES"] = "2"

from benchmarks._shared.llamas import LLAMAS, outlined
from benchmarks._shared.table import Table, add_save, versions
from benchmarks.ahead._compiled import Figures, compiled, held
from benchmarks.ahead._layout import SHARING, mesh_of
from benchmarks.ahead._slices import SLICES, Slice
from benchmarks.ahead._steps import Step, full_step, lora_step

STEPS = {"LoRA": lora_step, "full": full_step}
COLUMNS = (
    "model",
    "slice",
    "mesh",
    "trains",
    "weights",
    "adapters",
    "optimizer",
    "temporary",
    "peak, GB a chip",
    "TFLOP a chip",
    "FLOPs, compiled / traced",
)


def main() -> None:
    """The table in Markdown, each row as soon as it is known."""
    every = [str(each) for slices in SLICES.values() for each in slices]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", choices=SHARING, default=list(SHARING), metavar="")
    parser.add_argument("--slices", nargs="*", choices=every, metavar="", help="these alone")
    parser.add_argument("--generations", nargs="*", choices=SLICES, default=list(SLICES))
    parser.add_argument("--trains", nargs="*", choices=STEPS, default=list(STEPS))
    add_save(parser)
    given = parser.parse_args()
    table = Table(*COLUMNS)
    chosen = [each for s in SLICES.values() for each in s if str(each) in (given.slices or ())]
    for model in given.models:
        for trains in given.trains:
            for each in chosen:
                row(table, model, trains, each, step_for(model, trains, each))
            for generation in () if chosen else given.generations:
                walk(table, model, trains, SLICES[generation])
    known = versions("jax", "libtpu", "jax-cuda12-plugin", "flax", "optax")
    table.keep("ahead", given.save, known)
    print(f"\n{known}. *: some products in loops over chips, each counted once")


def walk(table: Table, model: str, trains: str, slices: list[Slice]) -> None:
    """From the first slice that can hold what stays between steps, up to the first that fits."""
    for each in slices:
        step = step_for(model, trains, each)
        if sum(held(step)) < each.memory and row(table, model, trains, each, step).fits:
            return


def row(table: Table, model: str, trains: str, each: Slice, step: Step) -> Figures:
    """Compiles and prints one row."""
    its = compiled(step, each)
    temporary = "does not fit" if its.temporary is None else f"{its.temporary / 1e9:.2f}"
    cells = [
        model,
        str(each),
        "x".join(map(str, step.mesh.shape.values())),
        trains,
        *(f"{size / 1e9:.2f}" for size in (its.weights, its.adapters, its.optimizer)),
        temporary,
        f"{its.peak / 1e9:.2f} of {each.memory / 1e9:.1f}",
        f"{its.flops / 1e12:.1f}",
        "" if its.repeated is None else f"{its.repeated:.2f}{'*' * its.in_turns}",
    ]
    table.row(*cells)
    return its


def step_for(model: str, trains: str, each: Slice) -> Step:
    """FSDP over the slice, but for so many chips of tensor parallelism as suit the model."""
    mesh = mesh_of(each.devices(), min(SHARING[model], each.chips))
    return STEPS[trains](outlined(LLAMAS[model]), mesh)


if __name__ == "__main__":
    main()
