"""One point of the benchmark: a train step of a llama of some shape, compiled and ready to run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jlora
from jlora import trainer
from jlora.models import Decoder, DecoderConfig
from jlora.trainer._flops import flops

LLAMA = DecoderConfig(
    vocabulary=1024, width=256, layers=2, heads=2, kv_heads=2, head_dim=128, mlp_width=768,
    max_length=4096, tied=True,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """What is varied."""

    rank: int = 16
    layers: int = LLAMA.layers
    length: int = 256  # tokens

    @property
    def config(self) -> DecoderConfig:
        return dataclasses.replace(LLAMA, layers=self.layers)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a step, measured or in theory."""

    seconds: float
    memory: float  # bytes


@dataclasses.dataclass(frozen=True)
class Step:
    """Of a point: the FLOPs of its products, its memory as compiled, and what takes one step."""

    flops: int
    memory: int  # bytes
    run: Callable[[], Any]


def step_of(point: Point) -> Step:
    """Compiles the trainer's step with AdamW for the adapter of every linear layer."""
    decoder, key = Decoder(point.config), jax.random.key(0)
    tokens = jax.random.randint(key, (1, point.length), 0, LLAMA.vocabulary)
    params = jax.jit(lambda: decoder.init(key, tokens[:, :4])["params"])()

    def loss(params, tokens):
        scores = decoder.apply({"params": params}, tokens)
        labels = jnp.roll(tokens, -1, axis=1)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return each.sum(), each.size

    axes = jlora.trace_axes(loss, params, tokens)
    config = jlora.LoraConfig(targets="all-linear", rank=point.rank)
    frozen, lora = jlora.split(params, config, key, axes=axes)
    tx = jlora.optimizer(optax.adamw(1e-3))
    step: Any = trainer.make_step(jlora.lift(loss, strict=True), tx)
    state = trainer.init(lora, tx, key)
    traced = step.trace(frozen, state, tokens)
    compiled: Any = traced.lower().compile()
    sizes = compiled.memory_analysis()

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(frozen, state, tokens)
        return state, metrics

    memory = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes
    return Step(flops(traced.jaxpr.jaxpr), memory, run)
