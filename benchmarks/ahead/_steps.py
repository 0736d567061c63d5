"""The two train steps, as functions of (trained, state, frozen, batch) that are laid out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jlora
from benchmarks._shared.step import adapter_first, train_step
from benchmarks.ahead._layout import FSDP, placed, shardings_of
from jlora.models import Model, answer_loss

LENGTH, RANK = 2048, 16


@dataclasses.dataclass(frozen=True)
class Step:
    """What trains, its optimizer state, what is frozen, and a batch: shapes with layouts."""

    mesh: Mesh
    fn: Any  # jitted; what trains and its state are donated
    trained: Any
    state: Any
    frozen: Any
    batch: Any

    @property
    def args(self) -> tuple[Any, ...]:
        return self.trained, self.state, self.frozen, self.batch


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
    step = train_step(adapter_first(jlora.lift(loss, strict=True)), tx)
    return Step(mesh, step, lora, state_of(tx, lora, mesh), placed(frozen, layout), batch)


def full_step(model: Model, mesh: Mesh) -> Step:
    """Every parameter in bfloat16, with AdamW's two moments in float32."""
    batch = batch_on(mesh)
    loss = loss_of(model, mesh)
    params = placed(model.params, shardings_of(model.params, mesh))
    tx = optax.adamw(1e-5)
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)  # noqa: E731

    def step(params, state, frozen, batch):
        del frozen
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(wide(grads), state, wide(params))
        return optax.apply_updates(params, updates), state, value

    jitted = jax.jit(step, donate_argnums=(0, 1))
    float32 = jax.tree.map(lambda p: p.update(dtype=jnp.float32), params)
    return Step(mesh, jitted, params, state_of(tx, float32, mesh), {}, batch)


def loss_of(model: Model, mesh: Mesh) -> Callable[..., jax.Array]:
    """(params, batch) -> the mean loss of a token, layers rematerialised, scores in chunks.

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
                return answer_loss(model, params, row, remat=True)

        total, count = jax.vmap(of_row, spmd_axis_name=FSDP)(batch)
        return total.sum() / count.sum()

    return loss


def state_of(tx: Any, trained: Any, mesh: Mesh) -> Any:
    """The optimizer's state: moments lie as what they are of, counts are whole everywhere."""

    def placed_like(moment, param):
        if isinstance(moment, optax.MaskedNode):  # of what does not train
            return moment
        return moment.update(sharding=param.sharding)

    def whole(leaf):
        return leaf.update(sharding=NamedSharding(mesh, PartitionSpec()))

    return optax.tree.map_params(
        tx,
        placed_like,
        jax.eval_shape(tx.init, trained),
        trained,
        transform_non_params=whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
