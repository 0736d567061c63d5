"""What trains and what does not: the optax side of an adapter."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jlora._lowrank import LoraWeight

TRAIN, FREEZE = "train", "freeze"


def labels(tree: Any) -> Any:
    """The same tree with ``"train"`` at every A and B and ``"freeze"`` at every other leaf.

    For `optax.partition` by hand. ``tree`` is the lora dict or any tree that holds one beside
    frozen leaves, as ``{"frozen": ..., "lora": ...}``.
    """

    def of_node(node):
        if not isinstance(node, LoraWeight):
            return FREEZE
        leaves, structure = jax.tree_util.tree_flatten_with_path(node)
        names = [path[0].name for path, _ in leaves]
        return jax.tree.unflatten(
            structure, [TRAIN if name in node.trainable else FREEZE for name in names]
        )

    return jax.tree.map(of_node, tree, is_leaf=lambda node: isinstance(node, LoraWeight))


def mask(tree: Any) -> Any:
    """The same tree with True at every leaf that trains (A and B) and False at every other."""
    return jax.tree.map(lambda label: label == TRAIN, labels(tree))


def optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """``tx`` for A and B; every other leaf gets the update zero and no optimizer state.

    `optax.masked` alone would pass the gradients of unmasked leaves on as updates. Put clipping,
    decay and schedules inside ``tx``: they then see what trains and nothing else.

    Example:
        >>> tx = jlora.optimizer(optax.adamw(1e-4))
        >>> state = tx.init(lora)
        >>> updates, state = tx.update(grads, state, lora)
        >>> lora = optax.apply_updates(lora, updates)
    """
    return optax.partition({TRAIN: tx, FREEZE: optax.set_to_zero()}, labels)
