"""The two train steps, as functions of (frozen, state, batch) that are laid out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jlora
from benchmarks._shared.whole import whole_step
from benchmarks.ahead._layout import FSDP, placed, shardings_of
from jlora import trainer
from jlora.models import Model, answer_loss

LENGTH, RANK = 2048, 16


@dataclasses.dataclass(frozen=True)
class Step:
    """What is frozen, the state of what trains, and a batch: shapes with layouts."""

    mesh: Mesh
    fn: Any  # jitted; the state is donated
    frozen: Any
    state: trainer.TrainState
    batch: Any

    @property
    def args(self) -> tuple[Any, ...]:
        return self.frozen, self.state, self.batch


def batch_on(mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """One row of 2048 tokens, each of them predicted, for each place along the FSDP axis."""
    rows = NamedSharding(mesh, PartitionSpec(FSDP))
    shape = (mesh.shape[FSDP], LENGTH)
    dtypes = {"tokens": "int32", "positions": "int32", "labels": "int32", "weights": "float32"}
    return {n: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for n, dtype in dtypes.items()}


def lora_step(model: Model, mesh: Mesh) -> Step:
    """As train.py has it: A and B in float32 on all linear layers, AdamW."""
    batch = batch_on(mesh)
    loss = loss_of(model, mesh)
    # of the model, not the loss: a product in a loop over chunks is not known to be the head's
    axes = jlora.trace_axes(model.apply, model.params, batch["tokens"])
    config = jlora.LoraConfig(targets="all-linear", rank=RANK)
    key = jax.random.key(0)
    frozen, lora = jax.eval_shape(lambda p: jlora.split(p, config, key, axes=axes), model.params)
    layout = shardings_of(frozen, mesh)
    lora = placed(lora, jlora.shardings(layout, lora))
    tx = jlora.optimizer(optax.adamw(1e-4, mask=jlora.decay_mask))
    step = trainer.make_step(jlora.lift(loss, strict=True), tx)
    return Step(mesh, step, placed(frozen, layout), state_of(tx, lora, lora, mesh), batch)


def full_step(model: Model, mesh: Mesh) -> Step:
    """Every parameter in bfloat16, with AdamW's two moments in float32."""
    batch = batch_on(mesh)
    loss = loss_of(model, mesh)
    params = placed(model.params, shardings_of(model.params, mesh))
    tx = optax.adamw(1e-5)
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)  # noqa: E731

    in_wide = optax.GradientTransformation(
        lambda params: tx.init(wide(params)),
        lambda grads, state, params: tx.update(wide(grads), state, wide(params)),
    )
    float32 = jax.tree.map(lambda p: p.update(dtype=jnp.float32), params)
    state = state_of(tx, params, float32, mesh)
    return Step(mesh, whole_step(loss, in_wide), None, state, batch)


def loss_of(model: Model, mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, batch) -> the loss of the tokens, layers rematerialised, scores in chunks.

    Rows are vmapped, so that each chip cuts its own into chunks; and the output of each layer keeps
    to the row's chips: left alone, the compiler cuts activations along their width instead.
    """
    kept = NamedSharding(mesh, PartitionSpec(None, None, PartitionSpec.UNCONSTRAINED))

    def keep(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        simple = context.method_name == "__call__" and isinstance(out, jax.Array)
        return jax.lax.with_sharding_constraint(out, kept) if simple and out.ndim == 3 else out

    def loss(params, batch):
        def of_row(row):
            with nn.intercept_methods(keep):
                row = jax.tree.map(lambda leaf: leaf[None], row)
                return answer_loss(model, params, row, remat="full")

        total, count = jax.vmap(of_row, spmd_axis_name=FSDP)(batch)
        return total.sum(), count.sum()

    return loss


def state_of(tx: Any, trained: Any, like: Any, mesh: Mesh) -> trainer.TrainState:
    """The state of what trains, with moments in the dtypes of ``like``.

    Moments lie as what they are of, counts are whole everywhere.
    """

    def placed_like(moment, param):
        if isinstance(moment, optax.MaskedNode):  # of what does not train
            return moment
        return moment.update(sharding=param.sharding)

    def whole(leaf):
        return leaf.update(sharding=NamedSharding(mesh, PartitionSpec()))

    moments = optax.tree.map_params(
        tx,
        placed_like,
        jax.eval_shape(tx.init, like),
        like,
        transform_non_params=whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    number, key = jax.eval_shape(lambda: (jnp.int32(0), jax.random.key(0)))
    return trainer.TrainState(whole(number), trained, moments, whole(key))
