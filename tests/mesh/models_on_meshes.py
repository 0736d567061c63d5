"""Small models of three families that lie on a mesh, and training them for a few steps."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from jlora import models, trainer
from jlora.models._layout import laid_out

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": SIZES,
    "wide llama": {**SIZES, "hidden_size": 256, "intermediate_size": 256, "head_dim": 32},
    "gemma2": {**SIZES, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "qwen3_moe": {
        **SIZES,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}
ROWS, LENGTH, ANSWERS = 8, 24, 12
# Clipped far below the gradients' norm. Adam takes the sign of a gradient that is nothing but
# rounding for one of full size, unless epsilon is above it.
CLIP = 0.05
OPTIMIZER = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(3e-3, eps=1e-5))


@functools.cache
def on_one_device(family: str) -> models.Model:
    """With weights that are not all at their start."""
    settings = {"model_type": family.split()[-1], **FAMILIES[family]}
    config = models.from_huggingface(settings, family)
    params = jax.jit(models.Decoder(config).init)(jax.random.key(0), jnp.ones((1, 2), int))

    def moved(leaf: jax.Array) -> jax.Array:
        return leaf + 0.02 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)

    nothing: Any = None
    return models.Model(jax.tree.map(moved, params["params"]), config, nothing, family)


def on(mesh: Any, family: str, quantize: str = "", **options: Any) -> models.Model:
    """The same model on a mesh; every factor of its adapters is cut along fsdp."""
    model = on_one_device(family)
    if quantize:
        axes = jlora.trace_axes(model.apply, model.params, jnp.ones((1, 2), int))
        model = dataclasses.replace(model, params=jlora.quantize(model.params, quantize, axes=axes))
    if mesh is None:
        return model
    layout = models.Layout(mesh, **{"small": 0, **options})
    params = laid_out(layout, model.config, model.params)
    return dataclasses.replace(model, params=params, layout=layout)


def batches(packed: bool, number: int) -> dict[str, np.ndarray]:
    """Rows with answers of any number of tokens, each time one with none, one with one, one full.

    Packed, of three texts each.
    """
    draw = np.random.default_rng(number)
    shape = (ROWS, ANSWERS)
    batch = {
        "tokens": draw.integers(0, SIZES["vocab_size"], (ROWS, LENGTH)).astype(np.int32),
        "positions": np.sort(draw.integers(0, LENGTH - 1, shape)).astype(np.int32),
        "labels": draw.integers(0, SIZES["vocab_size"], shape).astype(np.int32),
        "weights": (draw.random(shape) < draw.random((ROWS, 1))).astype(np.float32),
    }
    none, one, full = (np.arange(3) + number) % ROWS  # each on a device of its own, of eight
    batch["weights"][[none, one, full]] = np.array([[0], [0], [1]])
    batch["weights"][one, number % ANSWERS] = 1
    if packed:
        ends = np.sort(draw.integers(1, LENGTH, (ROWS, 2, 1)), axis=1)
        batch["segments"] = 1 + (np.arange(LENGTH) >= ends).sum(axis=1).astype(np.int32)
    return batch


class Measured(NamedTuple):
    """What a run's steps said of themselves, one number a step."""

    losses: np.ndarray
    norms: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run trains, and how."""

    family: str
    method: str = "lora"
    packed: bool = False
    accumulate: int = 1
    dropout: float = 0.0
    quantize: str = ""

    @property
    def batches(self) -> Any:
        return functools.partial(batches, self.packed)

    def begun(self, mesh: Any) -> tuple[Any, Any, trainer.TrainState, Any]:
        """(step, frozen, state, batches) on the mesh."""
        model = on(mesh, self.family, self.quantize)
        config = jlora.LoraConfig(
            targets="all-linear", rank=4, alpha=6.0, method=self.method, dropout=self.dropout
        )
        batch = {name: jnp.asarray(array) for name, array in self.batches(0).items()}
        axes = jlora.trace_axes(model.apply, model.params, batch["tokens"])
        frozen, lora = jlora.split(model.params, config, jax.random.key(1), axes=axes)
        given = self.batches
        if model.layout is not None:
            lora = jax.device_put(lora, model.layout.of_adapter(frozen, lora))
            given = trainer.sharded(given, model.layout.rows)
        tx = jlora.optimizer(OPTIMIZER)
        loss = functools.partial(models.answer_loss, model)
        step = trainer.make_step(jlora.lift(loss), tx, accumulate=self.accumulate)
        return step, frozen, trainer.init(lora, tx, jax.random.key(2)), given

    def trained(self, mesh: Any, steps: int = 20) -> tuple[Measured, trainer.TrainState]:
        """(the losses and the gradients' norms of so many steps, the state after them)."""
        step, frozen, state, given = self.begun(mesh)
        losses, norms = [], []
        for update in trainer.iterate(step, frozen, state, given, steps=steps):
            losses.append(float(update.metrics["loss"]))
            norms.append(float(update.metrics["grad_norm"]))
            state = update.state
        return Measured(np.array(losses), np.array(norms)), state

    def compiled(self, mesh: Any) -> Any:
        """Its step's program."""
        step, frozen, state, given = self.begun(mesh)
        return step.lower(frozen, state, given(0)).compile()
