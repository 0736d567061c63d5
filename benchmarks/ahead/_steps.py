"""The two train steps, as functions of (frozen, state, batch) that are laid out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

import jlora
from benchmarks._shared.llamas import LLAMAS, outlined
from benchmarks._shared.whole import whole_step
from jlora import models, trainer
from jlora._quantised import BLOCKS, FORMATS, BlockWeight, QuantizedWeight
from jlora.models._layout import laid_out, put

LENGTH, RANK = 2048, 16
PLAIN = "bfloat16"

# chips that share the work on a row, where there are so many
SHARING = {"1B": 1, "8B": 2, "70B": 4}


@dataclasses.dataclass(frozen=True)
class Step:
    """What is frozen, the state of what trains, and a batch: shapes with layouts."""

    layout: models.Layout
    fn: Any  # jitted; the state is donated
    frozen: Any
    state: trainer.TrainState
    batch: Any

    @property
    def args(self) -> tuple[Any, ...]:
        return self.frozen, self.state, self.batch


def layout_on(devices: Sequence[Any], sharing: int) -> models.Layout:
    """FSDP over all devices, but for so many in each group that shares the work on its rows."""
    return models.Layout(models.make_mesh({"fsdp": -1, "model": sharing}, devices))


def model_on(name: str, layout: models.Layout, base: str = PLAIN) -> models.Model:
    """The llama of this name, its parameters shapes that lie on the mesh.

    Args:
        name: of its shape.
        layout: on the mesh.
        base: the format of the layers' kernels; embedding, head and norms are bfloat16.
    """
    model = outlined(LLAMAS[name])
    params = model.params if base == PLAIN else _stored(model, base)
    params = laid_out(layout, model.config, params)
    return dataclasses.replace(model, params=params, layout=layout)


def _stored(model: models.Model, format: str) -> Any:
    """The parameters with each layer's kernels in the format, as `models.load` gives them."""
    axes = jlora.trace_axes(model.apply, model.params, jax.ShapeDtypeStruct((1, 8), "int32"))
    small = {
        path: _leaf(weight, axes[path], format) if path in axes and _is_kernel(path) else weight
        for path, weight in flat(model.params).items()
    }
    return flax.traverse_util.unflatten_dict(small, sep="/")


def _is_kernel(path: str) -> bool:
    return path.startswith("layers/") and path.endswith("/kernel")


def _leaf(weight: jax.ShapeDtypeStruct, axes: jlora.Axes, format: str) -> QuantizedWeight:
    """What stands for the weight, its arrays shapes."""
    if format in BLOCKS:
        (inputs,), its = axes.inputs, BLOCKS[format]
        rows = [weight.shape[dim] for dim in (*axes.stack, *axes.outputs)]
        data = jax.ShapeDtypeStruct((*rows, weight.shape[inputs] // its.block * its.size), "uint8")
        return BlockWeight(data, weight.shape, weight.dtype, axes, format)
    return jax.eval_shape(lambda weight: FORMATS[format].encoded(weight, axes, format), weight)


def batch_on(layout: models.Layout) -> dict[str, jax.ShapeDtypeStruct]:
    """One row of 2048 tokens, each of them predicted, for each place along the FSDP axis."""
    shape = (layout.parts, LENGTH)
    dtypes = {"tokens": "int32", "positions": "int32", "labels": "int32", "weights": "float32"}
    rows = layout.rows
    return {n: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for n, dtype in dtypes.items()}


def lora_step(name: str, layout: models.Layout, base: str = PLAIN) -> Step:
    """As train.py has it: A and B in float32 on all linear layers, AdamW."""
    model, batch = model_on(name, layout, base), batch_on(layout)
    # of the model, not the loss: a product in a loop over chunks is not known to be the head's
    axes = jlora.trace_axes(model.apply, model.params, batch["tokens"])
    config = jlora.LoraConfig(targets="all-linear", rank=RANK)
    key = jax.random.key(0)
    _, lora = jax.eval_shape(lambda p: jlora.split(p, config, key, axes=axes), model.params)
    lora = jax.tree.map(put, lora, layout.of_adapter(model.params, lora))
    tx = jlora.optimizer(optax.adamw(1e-4, mask=jlora.decay_mask))
    step = trainer.make_step(jlora.lift(_loss_of(model), strict=True), tx)
    return Step(layout, step, model.params, trainer.init_shapes(lora, tx), batch)


def full_step(name: str, layout: models.Layout) -> Step:
    """Every parameter in bfloat16, with AdamW's two moments in float32."""
    model, batch = model_on(name, layout), batch_on(layout)
    tx = optax.adamw(1e-5)
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)  # noqa: E731

    in_wide = optax.GradientTransformation(
        lambda params: tx.init(wide(params)),
        lambda grads, state, params: tx.update(wide(grads), state, wide(params)),
    )
    state = trainer.init_shapes(model.params, in_wide)
    return Step(layout, whole_step(_loss_of(model), in_wide), None, state, batch)


STEPS = {"LoRA": lora_step, "full": full_step}


def _loss_of(model: models.Model) -> Any:
    """(params, batch) -> the loss of the tokens, layers rematerialised."""
    return lambda params, batch: models.answer_loss(model, params, batch, remat="full")


def flat(tree: Any) -> dict[str, Any]:
    """The leaves by their paths."""
    return flax.traverse_util.flatten_dict(tree, sep="/")  # type: ignore
