"""What changes in training, as one tree: the adapter, the optimizer's state, the step's number."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


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
        lora: the adapter as it starts. Steps write into what they are given, so it is copied.
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
    return TrainState(jnp.zeros((), jnp.int32), lora, tx.init(lora), key)
