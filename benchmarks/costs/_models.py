"""The models, and what a compiled train step of each costs by each of its ways."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from benchmarks.costs._equinox import equinox_ways
from benchmarks.costs._linen import Transformer, linen_ways
from benchmarks.costs._nnx import nnx_ways
from benchmarks.costs._ways import Way
from jlora.models import Decoder, DecoderConfig

SMOLLM2 = DecoderConfig(
    vocabulary=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_width=1536,
    max_length=2048, rope_theta=1e5, tied=True,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one compiled train step."""

    flops: float
    bytes_accessed: float
    temporary: int  # bytes
    arguments: int  # bytes


def cost(way: Way, x: Any) -> Cost:
    """Loss, gradient and AdamW for what trains, compiled and not run."""
    tx = optax.adamw(1e-3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trained, state, frozen, x):
        value, grads = jax.value_and_grad(way.loss)(trained, frozen, x)
        updates, state = tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, value

    state = jax.eval_shape(tx.init, way.trained)
    compiled = step.lower(way.trained, state, way.frozen, x).compile()
    figures: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return Cost(
        figures["flops"],
        figures["bytes accessed"],
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
    )


TOKENS = jax.ShapeDtypeStruct((4, 128), "int32")
IMAGES = jax.ShapeDtypeStruct((4, 160, 160, 3), "float32")
HIDDEN = jax.ShapeDtypeStruct((4, 128, 256), "float32")
ROWS = jax.ShapeDtypeStruct((512, 256), "float32")
# name: (the ways, what a step reads)
MODELS: dict[str, tuple[Callable[[], dict[str, Way]], Any]] = {
    "linen transformer, 8 layers": (lambda: linen_ways(Transformer(8, False), TOKENS), TOKENS),
    "the same, scanned": (lambda: linen_ways(Transformer(8, True), TOKENS), TOKENS),
    "linen ViT, 4 layers": (lambda: linen_ways(Transformer(4, False), IMAGES), IMAGES),
    "NNX attention, 2 layers": (lambda: nnx_ways(HIDDEN), HIDDEN),
    "Equinox MLP, 5 layers": (lambda: equinox_ways(ROWS), ROWS),
    "SmolLM2, 30 layers scanned": (lambda: linen_ways(Decoder(SMOLLM2), TOKENS), TOKENS),
}


def costs(name: str) -> dict[str, Cost]:
    """Of every way to write the model of this name."""
    ways, x = MODELS[name]
    return {way: cost(its, x) for way, its in ways().items()}
