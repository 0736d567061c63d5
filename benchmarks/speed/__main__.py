"""How near a train step comes to the device's own matrix products, and how many tokens a second.

    python -m benchmarks.speed                                     on CPU: SmolLM2's shape
    python -m benchmarks.speed --models 1B 8B --dtypes bfloat16 --rows 4 --length 2048 --rank 16

A llama with random weights, AdamW, LoRA on every linear layer and full fine-tuning. The ceiling is
the fastest of the model's own products, jitted alone in the same process. The share counts what a
step needs: the products of one that keeps everything for its gradient, whatever is computed twice.
"""

import argparse

import jax

from benchmarks._shared.llamas import LLAMAS
from benchmarks._shared.table import Table, add_save, versions
from benchmarks.speed._ceiling import ceiling
from benchmarks.speed._step import job, needed, seconds
from jlora.models import REMATS

COLUMNS = (
    "model",
    "weights",
    "trains",
    "seconds a step",
    "tokens/s",
    "TFLOP a step needs",
    "TFLOP/s",
    "of the ceiling",
    "memory, GB",
)


def main() -> None:
    """The table in Markdown, each row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", choices=LLAMAS, default=["135M"])
    parser.add_argument("--dtypes", nargs="*", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--trains", nargs="*", choices=["LoRA", "full"], default=["LoRA", "full"])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--remat", choices=REMATS, default="products")
    parser.add_argument("--attention", choices=["blocks", "xla", "cudnn"], default="blocks")
    add_save(parser)
    given = parser.parse_args()
    asked = ("rows", "length", "rank", "remat", "attention")
    options = {name: getattr(given, name) for name in asked}
    table = Table(*COLUMNS)
    for model in given.models:
        for dtype in given.dtypes:
            most = ceiling(LLAMAS[model], given.rows * given.length, dtype, given.rounds)
            for trains in given.trains:
                its = job(LLAMAS[model], dtype, trains, **options)
                flops, (once, memory) = needed(its), seconds(its, given.rounds)
                table.row(
                    model,
                    dtype,
                    trains,
                    f"{once:.2f}",
                    f"{its.tokens / once:.0f}",
                    f"{flops / 1e12:.3f}",
                    f"{flops / once / 1e12:.3f}",
                    f"{flops / once / most:.0%} of {most / 1e12:.3f}",
                    f"{memory / 1e9:.2f}",
                )
    known = versions("jax", "flax", "optax")
    table.keep("speed", given.save, known)
    print(f"\n{jax.devices()[0].device_kind}; {known}; {given.rows} rows of {given.length} "
          f"tokens, rank {given.rank}, attention: {given.attention}")  # fmt: skip


if __name__ == "__main__":
    main()
