"""A train step of a llama with random weights on one device: LoRA, or everything."""

import dataclasses
import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jlora
from benchmarks._shared.llamas import outlined
from benchmarks._shared.memory import allocated
from benchmarks._shared.turns import seconds_in_turns
from benchmarks._shared.whole import whole_step
from jlora import trainer
from jlora.models import Decoder, DecoderConfig, Model, answer_loss
from jlora.trainer._flops import flops


@dataclasses.dataclass(frozen=True)
class Job:
    """What a step is made of; nothing of it is on the device yet."""

    model: Model  # shapes
    trains: str  # LoRA or full
    rows: int
    length: int
    rank: int
    remat: str

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def job(
    config: DecoderConfig, dtype: Any, trains: str, *, attention: str = "blocks", **options: Any
) -> Job:
    """The job of a llama of this shape."""
    model = dataclasses.replace(outlined(config, jnp.dtype(dtype)), attention=attention)
    return Job(model, trains, **options)


def needed(job: Job) -> int:
    """FLOPs of the matrix products in a step that keeps everything for its gradient."""
    # which hide no product in a kernel
    in_blocks = dataclasses.replace(job.model, attention="blocks")
    kept = dataclasses.replace(job, model=in_blocks, remat="none")
    return flops(step_of(kept).trace(*shapes_of(kept)).jaxpr.jaxpr)


def shapes_of(job: Job) -> tuple[Any, trainer.TrainState, Any]:
    """What the step takes, by shape."""
    batch = jax.eval_shape(functools.partial(_batch, job))
    frozen, trained = None, job.model.params
    if job.trains == "LoRA":
        split = functools.partial(adapted, job, batch["tokens"])
        frozen, trained = jax.eval_shape(split, trained)
    return frozen, jax.eval_shape(functools.partial(start, job), trained), batch


def adapted(job: Job, tokens: Any, params: Any) -> tuple[Any, Any]:
    """(frozen, lora): every linear layer adapted."""
    axes = jlora.trace_axes(job.model.apply, job.model.params, tokens)
    config = jlora.LoraConfig(targets="all-linear", rank=job.rank)
    return jlora.split(params, config, jax.random.key(0), axes=axes)


def step_of(job: Job) -> Any:
    """The trainer's step: (frozen, state, batch) -> (state, metrics)."""
    loss = functools.partial(answer_loss, job.model, remat=job.remat)
    if job.trains == "full":
        return whole_step(loss, optimizer(job))
    return trainer.make_step(jlora.lift(loss, strict=True), optimizer(job))


def start(job: Job, trained: Any) -> trainer.TrainState:
    """The state before the first step."""
    return trainer.init(trained, optimizer(job), jax.random.key(2))


def optimizer(job: Job) -> optax.GradientTransformation:
    """AdamW, of what trains."""
    adam = optax.adamw(1e-4)
    return adam if job.trains == "full" else jlora.optimizer(adam)


def seconds(job: Job, rounds: int) -> tuple[float, int]:
    """The median second of a step, and the bytes that it needs on the device."""
    batch = jax.jit(functools.partial(_batch, job))()
    frozen, trained = None, jax.jit(functools.partial(_random, job))()
    if job.trains == "LoRA":
        split = jax.jit(functools.partial(adapted, job, batch["tokens"]), donate_argnums=0)
        frozen, trained = split(trained)
    state = jax.jit(functools.partial(start, job), donate_argnums=0)(trained)
    step = step_of(job).lower(frozen, state, batch).compile()
    metrics: Any = None

    def run() -> Any:
        nonlocal state, metrics
        state, metrics = step(frozen, state, batch)
        return metrics

    times = seconds_in_turns({"step": run}, rounds)["step"]
    if not metrics["finite"]:
        raise SystemExit(f"the loss is {metrics['loss']}")
    return statistics.median(times), allocated(step.memory_analysis())


def _random(job: Job) -> Any:
    """Weights as an untrained model has them."""
    tokens = jnp.zeros((1, 4), "int32")
    params = Decoder(job.model.config).init(jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, job.model.params)


def _batch(job: Job) -> dict[str, jax.Array]:
    """Random text of which every token is predicted."""
    vocabulary = job.model.config.vocabulary
    text = jax.random.randint(jax.random.key(1), (job.rows, job.length + 1), 0, vocabulary)
    return {
        "tokens": text[:, :-1],
        "positions": jnp.tile(jnp.arange(job.length), (job.rows, 1)),
        "labels": text[:, 1:],
        "weights": jnp.ones((job.rows, job.length)),
    }
