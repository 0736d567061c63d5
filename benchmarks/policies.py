"""What a train step costs by what its layers keep for the gradient: temporary bytes and FLOPs.

    python -m benchmarks.policies
    python -m benchmarks.policies --model 1B --dtype bfloat16 --rows 1 --length 2048

SmolLM2's shape, LoRA on every linear layer, AdamW. Nothing runs and there are no weights: steps are
compiled for shapes alone. Bytes are the compiler's; FLOPs those of the products, loops in full.
"""

import argparse

import jax

from benchmarks._shared.llamas import LLAMAS
from benchmarks._shared.table import Table, add_save, versions
from benchmarks.speed._step import job, shapes_of, step_of
from jlora import models, trainer


def main() -> None:
    """The table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=LLAMAS, default="135M")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    add_save(parser)
    given = parser.parse_args()
    options = {name: getattr(given, name) for name in ("rows", "length", "rank")}
    keeps = {"none": "everything", "products": "its products' results", "full": "its input"}
    table = Table("`remat`", "a layer keeps", "temporary MiB", "TFLOP a step")
    for remat in models.REMATS:
        its = job(LLAMAS[given.model], given.dtype, "LoRA", remat=remat, **options)
        outlook = trainer.outlook(step_of(its), *shapes_of(its))
        memory, work = f"{outlook.temporary / 2**20:.0f}", f"{outlook.flops / 1e12:.3f}"
        table.row(f'`"{remat}"`', keeps[remat], memory, work)
    print(f"\n{jax.default_backend()}, JAX {jax.__version__}; {given.rows} rows of {given.length}")
    table.keep("policies", given.save, versions("jax", "flax"))


if __name__ == "__main__":
    main()
