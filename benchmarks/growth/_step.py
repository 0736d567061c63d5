"""One point of the benchmark: a train step of a llama of some shape, compiled and ready to run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jlora
from benchmarks._shared.step import adapter_first, train_step
from jlora.models import Decoder, DecoderConfig

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
    """Of a point: its cost as compiled, and a function that takes one step."""

    flops: float
    memory: int  # bytes
    run: Callable[[], Any]


def step_of(point: Point) -> Step:
    """Compiles loss, gradient and AdamW for the adapter of every linear layer."""
    decoder, key = Decoder(point.config), jax.random.key(0)
    tokens = jax.random.randint(key, (1, point.length), 0, LLAMA.vocabulary)
    params = jax.jit(lambda: decoder.init(key, tokens[:, :4])["params"])()

    def loss_of(scores, tokens):
        labels = jnp.roll(tokens, -1, axis=1)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    def loss(params, tokens):
        return loss_of(decoder.apply({"params": params}, tokens), tokens)

    axes = jlora.trace_axes(loss, params, tokens)
    config = jlora.LoraConfig(targets="all-linear", rank=point.rank)
    frozen, lora = jlora.split(params, config, key, axes=axes)
    tx = jlora.optimizer(optax.adamw(1e-3))
    step = train_step(adapter_first(jlora.lift(loss, strict=True)), tx)

    def update(lora, state, grads):
        updates, state = tx.update(grads, state, lora)
        return optax.apply_updates(lora, updates), state

    def head(hidden, params, tokens):
        return loss_of(decoder.apply({"params": params}, hidden, method="logits"), tokens)

    trained = [jax.tree.map(jnp.copy, lora), tx.init(lora)]
    compiled: Any = step.lower(*trained, frozen, tokens).compile()
    # The compiler counts the body of a scan once: what is outside of it is compiled alone.
    hidden = jax.ShapeDtypeStruct((*tokens.shape, LLAMA.width), "float32")
    outside = counted(jax.value_and_grad(head), hidden, params, tokens)
    outside += counted(update, *trained, lora)
    layer = compiled.cost_analysis()["flops"] - outside
    sizes = compiled.memory_analysis()

    def run() -> Any:
        *trained[:], value = compiled(*trained, frozen, tokens)
        return trained, value

    memory = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes
    return Step(outside + point.layers * layer, memory, run)


def counted(fn: Callable, *args: Any) -> float:
    """The compiler's FLOPs."""
    analysis: Any = jax.jit(fn).lower(*args).compile().cost_analysis()
    return analysis["flops"]
