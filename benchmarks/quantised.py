"""What a base in a few bits costs and saves on this machine: memory, steps, answers, what it loses.

    python -m benchmarks.quantised

SmolLM2 as its file has it (float32 is that file decoded), LoRA of rank 8 on all linear layers, the
trainer's own step on one row of so many tokens. Steps and answers take turns in one process: median
times and the median ratio to float32's of the same round. The loss is the untouched model's, a
token, on held-out rows of the default task.
"""

import argparse
import dataclasses
import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from benchmarks._shared.table import Table, add_save, versions
from benchmarks._shared.turns import seconds_in_turns
from jlora import data, models, tasks, trainer

KINDS = {
    "float32": {},
    "stored": {"quantize": "stored"},
    "int8": {"quantize": "int8"},
    "nf4": {"quantize": "nf4"},
}
COLUMNS = (
    "base",
    "weights, MB",
    "of float32's",
    "temporary, MB",
    "GFLOP a step",
    "seconds a step",
    "of float32's",
    "answer, tokens/s",
    "of float32's",
    "trace + compile, s",
    "loss untouched",
)
ADAPTER = jlora.LoraConfig(targets="(q|k|v|o|gate|up|down)_proj", rank=8, alpha=16.0)
NEW_TOKENS = 32


@dataclasses.dataclass
class Job:
    """One base, its step and its state."""

    model: Any
    frozen: Any
    lora: Any
    step: Any
    state: Any
    batch: Any

    def run(self) -> Any:
        """One step."""
        self.state, metrics = self.step(self.frozen, self.state, self.batch)
        return metrics

    def answer(self) -> Any:
        """One answer of so many tokens, one at a time."""
        prompt = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]
        return models.answer(
            self.model, [prompt], self.frozen, self.lora, max_new_tokens=NEW_TOKENS
        )


def batch_of(length: int) -> dict[str, np.ndarray]:
    """One row, of whose second half each token is predicted."""
    tokens = np.random.default_rng(0).integers(100, 40000, (1, length + 1)).astype(np.int32)
    positions = np.arange(length // 2, length, dtype=np.int32)[None]
    labels = np.take_along_axis(tokens, positions + 1, axis=1)
    weights = np.ones(positions.shape, np.float32)
    return {"tokens": tokens[:, :-1], "positions": positions, "labels": labels, "weights": weights}


def job(options: dict[str, Any], length: int) -> Job:
    """The base with a fresh adapter."""
    model: Any = models.load(**options)
    axes = jlora.trace_axes(model.apply, model.params, jnp.ones((1, 8), int))
    frozen, lora = jlora.split(model.params, ADAPTER, jax.random.key(0), axes=axes)
    tx = jlora.optimizer(optax.adamw(1e-4))
    step = trainer.make_step(jlora.lift(functools.partial(models.answer_loss, model)), tx)
    state = trainer.init(lora, tx, jax.random.key(1))
    return Job(model, frozen, lora, step, state, batch_of(length))


def untouched(model: Any, rows: int) -> float:
    """The loss a token on held-out rows."""
    _, held_out = tasks.home_assistant(8, rows, seed=0)
    examples, _ = data.encode(held_out, model.tokenizer, max_length=512)
    batches = data.Batches(examples, batch_size=8, shuffle=False)
    loss = jax.jit(functools.partial(models.answer_loss, model))
    sums = [loss(model.params, batches(at)) for at in range(batches.per_epoch)]
    return float(sum(total for total, _ in sums) / sum(count for _, count in sums))


def main() -> None:
    """The table in Markdown."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=64, help="held-out rows")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=[*KINDS])
    add_save(parser)
    given = parser.parse_args()
    jobs = {kind: job(KINDS[kind], given.length) for kind in given.kinds}
    programs = {}
    for kind, its in jobs.items():
        began = trainer.Stopwatch()
        programs[kind] = its.step.lower(its.frozen, its.state, its.batch).compile(), began.lap()
    steps = seconds_in_turns({kind: its.run for kind, its in jobs.items()}, given.rounds)
    answers = seconds_in_turns({kind: its.answer for kind, its in jobs.items()}, 3)
    table = Table(*COLUMNS)
    first = given.kinds[0]

    def ratio(times: dict[str, list[float]], kind: str) -> float:
        return statistics.median(a / b for a, b in zip(times[kind], times[first], strict=True))

    def stored(kind: str) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(jobs[kind].model.params))

    for kind, its in jobs.items():
        program, compiling = programs[kind]
        memory: Any = program.memory_analysis()
        costs: Any = program.cost_analysis()
        table.row(
            kind,
            f"{stored(kind) / 1e6:.0f}",
            f"{stored(kind) / stored(first):.2f}",
            f"{memory.temp_size_in_bytes / 1e6:.0f}",
            f"{costs['flops'] / 1e9:.1f}",
            f"{statistics.median(steps[kind]):.2f}",
            f"{ratio(steps, kind):.2f}",
            f"{NEW_TOKENS / statistics.median(answers[kind]):.1f}",
            f"{1 / ratio(answers, kind):.2f}",
            f"{compiling:.1f}",
            f"{untouched(its.model, given.rows):.3f}",
        )
    table.keep("quantised", given.save, versions("jax", "flax", "optax"))


if __name__ == "__main__":
    main()
