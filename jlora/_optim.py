"""What trains and what does not: the optax side of an adapter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib

from jlora._lowrank import RANK
from jlora._node import Node

TRAIN, FREEZE = "train", "freeze"


def labels(tree: Any, *, freeze: str | Sequence[str] = ()) -> Any:
    """The same tree with ``"train"`` at every leaf that trains and ``"freeze"`` at every other.

    What trains are A and B, magnitudes, and what `LoraConfig` lets train whole. For
    `optax.partition` by hand.

    Args:
        tree: the lora dict, or any tree that holds one beside frozen leaves, as
            ``{"frozen": ..., "lora": ...}``.
        freeze: fields of nodes that shall stay, as ``"a"``.

    Returns:
        a tree of the same structure.

    Raises:
        ValueError: when ``freeze`` names what trains in no node of the tree.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> told = jlora.labels({"frozen": frozen, "lora": lora})
        >>> told["frozen"]["kernel"], told["lora"]["kernel"].a, told["lora"]["kernel"].scaling
        ('freeze', 'train', 'freeze')
    """
    held = {freeze} if isinstance(freeze, str) else set(freeze)
    _check_held(tree, held)
    return _by_field(tree, lambda node, name: TRAIN if name in _trained(node, held) else FREEZE)


def mask(tree: Any, *, freeze: str | Sequence[str] = ()) -> Any:
    """The same tree with True at every leaf that trains and False at every other.

    Args:
        tree: as for `labels`.
        freeze: fields of nodes that shall stay, as ``"a"``.

    Returns:
        a tree of the same structure.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> trains = jlora.mask(lora)["kernel"]
        >>> trains.a, trains.b, trains.scaling
        (True, True, False)
    """
    return jax.tree.map(lambda label: label == TRAIN, labels(tree, freeze=freeze))


def decay_mask(tree: Any) -> Any:
    """The same tree with True where weight decay belongs: A and B.

    They are differences from the base, which decay towards it. What trains whole and magnitudes
    would decay towards zero, away from what the base has learned, and in a stack of layers a scale
    looks like a matrix. For ``optax.adamw(..., mask=jlora.decay_mask)``.

    Args:
        tree: as for `labels`.

    Returns:
        a tree of the same structure.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2, method="dora")
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> decays = jlora.decay_mask(lora)["kernel"]
        >>> decays.a, decays.b, decays.magnitude
        (True, True, False)
    """
    return _by_field(tree, lambda node, name: node is not None and name in node.decayed)


def optimizer(
    tx: optax.GradientTransformation, *, freeze: str | Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """``tx`` for what trains; every other leaf gets the update zero and no optimizer state.

    `optax.masked` alone would pass the gradients of unmasked leaves on as updates. Put clipping,
    decay and schedules inside ``tx``: they then see what trains and nothing else. In the state an
    `optax.MaskedNode` stands for what does not train: `optax.tree.map_params`, which lays the state
    out on a mesh as its parameters are, wants to be told so (``is_leaf``).

    Args:
        tx: any optax transformation.
        freeze: fields of nodes that stay as they start. ``"a"`` is LoRA-FA (Zhang et al. 2023,
            arXiv 2308.03303): B alone trains, and under jit no gradient of A is computed and no
            input of A is kept for it.

    Returns:
        the transformation for the lora dict, or for any tree that holds one beside frozen leaves.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> tx = jlora.optimizer(optax.adamw(1e-4, mask=jlora.decay_mask))
        >>> grads, state = jax.tree.map(jnp.ones_like, lora), tx.init(lora)
        >>> updates, state = tx.update(grads, state, lora)
        >>> lora = optax.apply_updates(lora, updates)
        >>> bool(updates["kernel"].a.any()), bool(updates["kernel"].scaling.any())
        (True, False)
    """
    parted = optax.partition(
        {TRAIN: tx, FREEZE: optax.set_to_zero()},
        functools.partial(labels, freeze=freeze),
        mask_compatible_extra_args=True,
    )

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
        more = {name: _on_whole(v, params) if callable(v) else v for name, v in more.items()}
        return parted.update(updates, state, params, **more)

    return optax.GradientTransformationExtraArgs(parted.init, update)


def _on_whole(fn: Callable[..., Any], params: Any) -> Callable[..., Any]:
    """A function of the tree, as a line search calls it: with what trains alone.

    It reads names of further arguments off the function, so these stay.
    """

    @functools.wraps(fn)
    def on_whole(trained: Any, *args: Any, **kwargs: Any) -> Any:
        whole = jax.tree.map(
            lambda new, old: old if _is_masked(new) else new, trained, params, is_leaf=_is_masked
        )
        return fn(whole, *args, **kwargs)

    return on_whole


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def muon_dimensions(tree: Any) -> Any:
    """What `optax.contrib.muon` must know to treat each layer's A and B as a matrix.

    Muon takes leaves of two dimensions for matrices and gives every other to Adam, a stack of
    layers too. Here A is (inputs -> rank), B (rank -> outputs), each for every entry of the stack;
    every other leaf is None: Adam's.

    Args:
        tree: the lora dict, or any tree that holds one.

    Returns:
        a tree of the same structure, of `optax.contrib.MuonDimensionNumbers` and None.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax.contrib
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> tx = optax.contrib.muon(1e-2, muon_weight_dimension_numbers=jlora.muon_dimensions)
        >>> state = jlora.optimizer(tx).init(lora)
        >>> numbers = jlora.muon_dimensions(lora)["kernel"]
        >>> numbers.a.reduction_axis, numbers.a.output_axis, numbers.scaling
        ((0,), (1,), None)
    """

    def of_node(node: Any) -> Any:
        if not isinstance(node, Node):
            return None
        numbers = _matrices(node)
        leaves, structure = jax.tree_util.tree_flatten_with_path(node)
        return jax.tree.unflatten(structure, [numbers.get(path[0].name) for path, _ in leaves])

    return jax.tree.map(of_node, tree, is_leaf=lambda v: isinstance(v, Node))


def _matrices(node: Node) -> dict[str, Any]:
    """The axes of each field that is a stack of matrices with a rank."""
    whole = jax.tree.map(lambda _: np.zeros(()), node, is_leaf=_is_masked)  # no field is missing
    dims = {name: each for name, each in whole.dimensions().items() if name in node.trainable}
    ranked = {name: each for name, each in dims.items() if each.count(RANK) == 1}
    if len(ranked) < 2:
        return {}
    stack = set.intersection(*map(set, ranked.values())) - {RANK}
    found = {}
    for name, each in ranked.items():
        rank = each.index(RANK)
        if others := tuple(axis for axis, dim in enumerate(each) if dim not in {RANK, *stack}):
            sides = (others, (rank,)) if others[0] < rank else ((rank,), others)
            found[name] = optax.contrib.MuonDimensionNumbers(*sides)
    return found


def lora_plus(ratio: float) -> optax.GradientTransformation:
    """Multiplies the updates of every B by ``ratio``: B learns so many times as fast as A.

    B is what a node's class names after A in its ``factors``.

    Put it last: ``optax.chain(optax.adamw(1e-4), jlora.lora_plus(16))``. It is the optimizer with
    the learning rate ``ratio * rate`` for B, under any schedule; decoupled weight decay scales with
    the rate, as it does there.

    Args:
        ratio: how many times as fast.

    Returns:
        the last part of a chain.

    Raises:
        ValueError: unless the ratio is above 0.

    Source: Hayou et al. 2024, "LoRA+", arXiv 2402.12354, section 4; it recommends 16.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> tx = jlora.optimizer(optax.chain(optax.sgd(1.0), jlora.lora_plus(16)))
        >>> updates, _ = tx.update(jax.tree.map(jnp.ones_like, lora), tx.init(lora), lora)
        >>> float(updates["kernel"].a[0, 0]), float(updates["kernel"].b[0, 0])
        (-1.0, -16.0)
    """
    if isinstance(ratio, (int, float)) and not ratio > 0:
        raise ValueError(f"the ratio of LoRA+ is {ratio!r}: expected a number above 0")

    def scaled(updates: Any, params: Any = None) -> Any:
        of_b = _by_field(updates, lambda node, name: node is not None and name in node.factors[1:])
        return jax.tree.map(lambda u, b: (ratio * u).astype(u.dtype) if b else u, updates, of_b)

    return optax.stateless(scaled)


def _check_held(tree: Any, held: set[str]) -> None:
    """Raises a ValueError for a name that would freeze nothing; a tree without nodes has none."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Node)) if held else []
    known = {name for node in leaves if isinstance(node, Node) for name in node.trainable}
    if known and (unknown := sorted(held - known)):
        raise ValueError(
            f"freeze names {', '.join(map(repr, unknown))}, which trains in no node: expected some "
            f"of {', '.join(map(repr, sorted(known)))}"
        )


def _trained(node: Node | None, held: set[str]) -> set[str]:
    return set() if node is None else set(node.trainable) - held


def _by_field(tree: Any, value: Callable[[Node | None, str], Any]) -> Any:
    """The same tree with ``value(node, field)`` at every leaf; the node is None outside of one."""

    def values_of(node: Any) -> Any:
        if not isinstance(node, Node):
            return value(None, "")
        leaves, structure = jax.tree_util.tree_flatten_with_path(node)
        return jax.tree.unflatten(structure, [value(node, path[0].name) for path, _ in leaves])

    return jax.tree.map(values_of, tree, is_leaf=lambda node: isinstance(node, Node))
