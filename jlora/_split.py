"""The pytree transform: parameters into a frozen tree and a low-rank delta."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import _paths, _targets
from jlora._config import LoraConfig, Ranks
from jlora._frozen_leaf import plain, replaced
from jlora._leaf import Leaf
from jlora._lora_dict import Lora, shared_name
from jlora._lowrank import Axes
from jlora._method import Method
from jlora._methods import BiasDelta, TokenRows, WholeWeight
from jlora._node import Node
from jlora._registry import method_class


def split(
    params: Any, config: LoraConfig, key: jax.Array, *, axes: Mapping[str, Axes] | None = None
) -> tuple[Any, Lora]:
    """The pair (frozen, lora): a fresh delta for each targeted leaf, and what stays as it is.

    The adapted function equals the base function. Most starts have B zero, and ``frozen`` holds
    the arrays of ``params``; PiSSA and OLoRA take the delta out of it (in float32, rounded to the
    weight's dtype), and `rebase` turns what they trained into an adapter of the original. The start
    of each leaf depends on ``key`` and the leaf's path alone.

    Args:
        params: any pytree of arrays. ShapeDtypeStructs will do under ``jax.eval_shape``.
        config: what to adapt, and how.
        key: a random key.
        axes: how each weight is used: from `trace_axes`, whose leaves without axes are no weights,
            or by hand. A weight of two dimensions of which nothing says it is (in, out); one of
            more dimensions needs it.

    Returns:
        frozen: has the structure of ``params``, in containers of its own.
        lora: a flat dict from a leaf's path to its node, in most cases a `LoraWeight`.

    Raises:
        ValueError: when a pattern matches nothing, or a matched leaf can't be adapted: every such
            leaf is named.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> lora["kernel"].a.shape, lora["kernel"].b.shape
        ((7, 2), (2, 5))
    """
    leaves, structure = _paths.flatten(params)
    plan = _targets.plan(leaves, config, axes)
    method = method_class(str(config.method))
    lora: Lora = {}
    for path, leaf in leaves.items():
        if path in plan.adapted:
            start = leaf_of(path, leaf, key, config, *plan.adapted[path])
            if method.reads_weight(config.init):
                start = dataclasses.replace(start, weight=leaf)
            lora[path], residual = _started(method, start)
            if residual is not None:
                leaves[path] = replaced(leaf, lambda _, new: new, residual)
        elif path in plan.biases:
            weight, ranks = plan.biases[path]
            lora[path] = BiasDelta.from_bias(leaf, _layer_scaling(config, weight, ranks))
        elif path in plan.whole:
            lora[path] = WholeWeight.from_weight(plain(leaf))
        elif path in plan.rows:
            vocabulary, tokens = plan.rows[path]
            lora[path] = TokenRows.from_table(leaf, tokens, vocabulary)
    adapted = [
        leaf_of(path, leaves[path], key, config, *plan.adapted[path]) for path in plan.adapted
    ]
    for name, factor in method.shared(adapted, key).items():
        lora[shared_name(name)] = factor
    return jax.tree.unflatten(structure, leaves.values()), lora


def leaf_of(
    path: str, leaf: Any, key: jax.Array, config: LoraConfig, axes: Axes, ranks: Ranks
) -> Leaf:
    """What the method is told of a leaf; not its weight."""
    rank = max(ranks) if isinstance(ranks, tuple) else ranks
    scaling, shape = _scaling(config, path, ranks), np.shape(leaf)
    if jnp.ndim(scaling):  # over further stack dimensions
        stack = tuple(shape[dim] for dim in axes.stack)
        scaling = jnp.expand_dims(scaling, tuple(range(1, len(stack))))
        scaling = jnp.broadcast_to(scaling, (*stack, rank))
    return Leaf(
        path=path,
        key=_paths.key_for(key, path),
        shape=shape,
        axes=axes,
        rank=rank,
        scaling=scaling,
        dropout=jnp.float32(config.dropout) if config.dropout else None,
        init=config.init,
        dtype=config.dtype,
        options=config.all_options,
    )


def _started(method: type[Method], leaf: Leaf) -> tuple[Node, Any]:
    """The method's start, compiled once for all leaves that are alike."""
    fixed = {name: getattr(leaf, name) for name in ("shape", "axes", "rank", "init", "dtype")}
    options = tuple(leaf.options.items())
    return _compiled(
        leaf.key, leaf.scaling, leaf.dropout, leaf.weight, method=method, options=options, **fixed
    )


@functools.partial(
    jax.jit, static_argnames=("method", "options", "shape", "axes", "rank", "init", "dtype")
)
def _compiled(
    key: jax.Array, scaling: jax.Array, dropout: Any, weight: Any, *, method: type[Method],
    options: Any, **fixed: Any,
) -> tuple[Node, Any]:  # fmt: skip
    leaf = Leaf(
        key=key, scaling=scaling, dropout=dropout, weight=plain(weight),
        options=dict(options),
        **fixed,
    )  # fmt: skip
    return method.start(leaf)


def _scaling(config: LoraConfig, path: str, ranks: Ranks) -> jax.Array:
    """() where all layers have one rank; else (layers, highest rank), zero beyond a layer's own."""
    each = _layer_scaling(config, path, ranks)
    if not isinstance(ranks, tuple):
        return each
    return jnp.where(np.arange(max(ranks)) < np.array(ranks)[:, None], each[:, None], 0)


def _layer_scaling(config: LoraConfig, path: str, ranks: Ranks) -> jax.Array:
    """() where all layers have one rank; else (layers,)."""
    if not isinstance(ranks, tuple):
        return jnp.asarray(config.scaling_for(path, ranks), jnp.float32)
    each = [config.scaling_for(path, rank, layer) for layer, rank in enumerate(ranks)]
    return jnp.asarray(each, jnp.float32)
