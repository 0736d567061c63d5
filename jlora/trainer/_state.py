"""What changes in training, as one tree: the adapter, the optimizer's state, the step's number."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jlora import _placement


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step takes and gives: a tree of arrays, the frozen weights left out.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> state = jlora.trainer.TrainState(jnp.int32(5), {}, (), jax.random.key(0))
        >>> int(state.step)
        5
    """

    step: jax.Array  # () int32, how many updates were done
    lora: Any  # the adapter as it is now
    opt_state: Any  # the optimizer's
    key: jax.Array  # a typed key, the same in all steps: each folds its number into it


def init(lora: Any, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step.

    Args:
        lora: the adapter as it starts. Steps write into what they are given, so it is copied. On a
            mesh the optimizer's state lies as the factors do, and what it counts is everywhere.
        tx: from `jlora.optimizer`.
        key: of dropout; it is copied too.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> state = jlora.trainer.init(lora, jlora.optimizer(optax.sgd(0.1)), jax.random.key(1))
        >>> int(state.step), sorted(state.lora)
        (0, ['kernel'])
    """
    lora, key = jax.tree.map(jnp.copy, (lora, key))
    state = TrainState(jnp.zeros((), jnp.int32), lora, tx.init(lora), key)
    first = next(iter(jax.tree.leaves(lora)), None)
    return _placement.on_mesh_of(state, first)


def init_shapes(lora: Any, tx: optax.GradientTransformation) -> TrainState:
    """What `init` gives, of shapes, and laid out as there: for `outlook`.

    Args:
        lora: the adapter, of `jax.ShapeDtypeStruct`, with shardings where it lies on a mesh.
        tx: from `jlora.optimizer`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> params = {"kernel": jax.ShapeDtypeStruct((7, 5), jnp.float32)}
        >>> split = lambda params: jlora.split(params, config, jax.random.key(0))
        >>> frozen, lora = jax.eval_shape(split, params)
        >>> state = jlora.trainer.init_shapes(lora, jlora.optimizer(optax.sgd(0.1)))
        >>> state.step.dtype
        dtype('int32')
    """
    number: Any
    number, key = jax.eval_shape(lambda: (jnp.int32(0), jax.random.key(0)))
    meshes = [leaf.sharding.mesh for leaf in jax.tree.leaves(lora) if leaf.sharding is not None]
    everywhere = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    whole = functools.partial(_placed, sharding=everywhere)

    def like(moment: Any, param: Any) -> Any:
        if isinstance(moment, optax.MaskedNode):  # of what does not train
            return moment
        return _placed(moment, param.sharding) if moment.shape == param.shape else whole(moment)

    moments = optax.tree.map_params(
        tx,
        like,
        jax.eval_shape(tx.init, lora),
        lora,
        transform_non_params=whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return TrainState(whole(number), lora, moments, whole(key))


def _placed(shape: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
