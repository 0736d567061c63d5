"""How much of a batch is real, and how fast it trains: rows in buckets, rows packed together.

    python -m benchmarks.packing

Two sets of rows: lengths with a long tail (20 to 2000 tokens), and the default task. For each, an
epoch of `Batches` (4 rows) and one of `PackedBatches` (1 sequence). FLOPs are those of all products
of a LoRA gradient of SmolLM2's shape, counted and not run. Tokens/s, padding left out, are those of
a small llama's train step: each shape's median time, in turns in one process, as often as an epoch
has it.
"""

import argparse
import collections
import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from benchmarks._shared.llamas import LLAMAS, outlined
from benchmarks._shared.table import Table, add_save, versions
from benchmarks._shared.turns import seconds_in_turns
from jlora import data, models, tasks, trainer
from jlora.trainer._flops import flops

SMALL = models.DecoderConfig(
    vocabulary=4096, width=256, layers=6, heads=4, kv_heads=2, head_dim=64, mlp_width=688,
    max_length=2048, tied=True,
)  # fmt: skip
LORA = jlora.LoraConfig(targets="_proj", rank=8)


def long_tailed(rows: int) -> data.Examples:
    """Rows whose logarithm of the length is normal, and whose second half is the answer."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(150), 1.0, rows)).clip(20, 2000).astype(int)
    return data.Examples.of(
        data.Example(rng.integers(1, 4096, size).tolist(), [*range(size // 2, size - 1)])
        for size in lengths.tolist()
    )


def default_task(rows: int) -> data.Examples:
    """Rows of the default task, as train.py makes them of its default settings."""
    train, _ = tasks.home_assistant(rows, 160, seed=0)
    return data.encode(train, models.outline().tokenizer, max_length=512)[0]


def adapted(model: models.Model, params: Any) -> tuple[Any, Any, Any]:
    """(the lifted loss, frozen, lora)."""
    axes = jlora.trace_axes(model.apply, params, jnp.zeros((1, 4), "int32"))
    frozen, lora = jlora.split(params, LORA, jax.random.key(1), axes=axes)
    return jlora.lift(functools.partial(models.answer_loss, model)), frozen, lora


def flops_of(batch: data.Batch) -> int:
    """Of the products in a gradient of SmolLM2's shape."""
    model = outlined(LLAMAS["135M"], jnp.float32)

    def gradient(params, batch):
        loss, frozen, lora = adapted(model, params)
        return jax.grad(lambda lora: loss(frozen, lora, batch)[0])(lora)

    return flops(jax.make_jaxpr(gradient)(model.params, batch).jaxpr)


def stepping() -> Any:
    """A function that trains the small llama on a batch."""
    init: Any = jax.jit(models.Decoder(SMALL).init)
    params = init(jax.random.key(0), jnp.ones((1, 4), int))["params"]
    loss, frozen, lora = adapted(models.Model(params, SMALL, tokenizer=None, name="small"), params)  # type: ignore
    tx = jlora.optimizer(optax.adamw(1e-4))
    step = trainer.make_step(loss, tx)
    states = [trainer.init(lora, tx, jax.random.key(2))]

    def run(batch):
        state, metrics = step(frozen, states.pop(), batch)
        states.append(state)
        return metrics

    return run


def main() -> None:
    """The table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1920)
    parser.add_argument("--rounds", type=int, default=5)
    add_save(parser)
    given = parser.parse_args()
    run = stepping()
    table = Table(
        "rows",
        "batches",
        "shapes",
        "updates an epoch",
        "real positions",
        "GFLOP a token",
        "tokens/s",
    )
    for name, make, length in (
        ("20 to 2000 tokens", long_tailed, 2048),
        ("the default task", default_task, 512),
    ):
        rows = make(given.rows)
        ways = {
            "buckets of 4 rows": data.Batches(rows, batch_size=4),
            f"packed, 1 of {length}": data.PackedBatches(rows, batch_size=1, length=length),
        }
        shapes = {way: shapes_of(batches) for way, batches in ways.items()}
        each = {
            (way, shape): functools.partial(run, batch)
            for way, its in shapes.items()
            for shape, (batch, _) in its.items()
        }
        times = seconds_in_turns(each, given.rounds)
        for way, batches in ways.items():
            its = shapes[way].items()
            tokens = sum(map(batches.tokens, range(batches.per_epoch)))
            held = sum(batch["tokens"].size * count for _, (batch, count) in its)
            work = sum(flops_of(batch) * count for _, (batch, count) in its)
            seconds = sum(statistics.median(times[way, shape]) * count for shape, (_, count) in its)
            table.row(
                name,
                way,
                str(len(its)),
                str(batches.per_epoch),
                f"{100 * tokens / held:.1f} %",
                f"{work / tokens / 1e9:.2f}",
                f"{tokens / seconds:.0f}",
            )
    print(f"\n{jax.default_backend()}, JAX {jax.__version__}, {given.rows} rows")
    table.keep("packing", given.save, versions("jax", "flax", "grain"))


def shapes_of(batches: Any) -> dict[Any, tuple[data.Batch, int]]:
    """By shape: a batch with tokens of the small vocabulary, and how many an epoch has of it."""
    found, counts = {}, collections.Counter()
    for step in range(batches.per_epoch):
        batch = batches(step)
        shape = batch["tokens"].shape
        counts[shape] += 1
        found[shape] = {name: array.copy() for name, array in batch.items()}
        for tokens in ("tokens", "labels"):
            found[shape][tokens] %= SMALL.vocabulary
    return {shape: (batch, counts[shape]) for shape, batch in found.items()}


if __name__ == "__main__":
    main()
