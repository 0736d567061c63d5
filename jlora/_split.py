"""The pytree transform: parameters into a frozen tree and a low-rank delta."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import _paths, _starts, _targets
from jlora._config import LoraConfig, Ranks
from jlora._lowrank import Axes, matrix_shape, wide
from jlora._merge import Lora
from jlora._methods import METHODS, BiasDelta, LoraWeight, Node, TokenRows, WholeWeight


def split(
    params: Any, config: LoraConfig, key: jax.Array, *, axes: Mapping[str, Axes] | None = None
) -> tuple[Any, Lora]:
    """The pair (frozen, lora): a fresh delta for each targeted leaf, and what stays as it is.

    The adapted function equals the base function. Most starts have B zero, and ``frozen`` is
    ``params``; PiSSA and OLoRA take the delta out of it (in float32, rounded to the weight's
    dtype), and `rebase` turns what they trained into an adapter of the original. The start of each
    leaf depends on ``key`` and the leaf's path alone.

    Args:
        params: any pytree of arrays. ShapeDtypeStructs will do under ``jax.eval_shape``.
        config: what to adapt, and how.
        key: a random key.
        axes: from `trace_axes`: how each weight is used. Without it a weight of two dimensions is
            (in, out); one of more dimensions needs it.

    Returns:
        frozen: has the structure of ``params``.
        lora: a flat dict from a leaf's path to its node, in most cases a `LoraWeight`.

    Raises:
        ValueError: when a pattern matches nothing, or a matched leaf can't be adapted: every such
            leaf is named.

    Example:
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> lora["kernel"].a.shape, lora["kernel"].b.shape
        ((7, 2), (2, 5))
    """
    leaves, structure = _paths.flatten(params)
    plan = _targets.plan(leaves, config, axes)
    start, method = _starts.find(config.init), METHODS[config.method]
    lora: Lora = {}
    for path, leaf in leaves.items():
        if path in plan.adapted:
            its_axes, ranks = plan.adapted[path]
            lora[path], leaves[path] = _adapted(
                leaf if start.moves_weight or method.reads_weight else None,
                _paths.key_for(key, path),
                _scaling(config, path, ranks),
                start=start,
                shape=np.shape(leaf),
                axes=its_axes,
                rank=max(ranks) if isinstance(ranks, tuple) else ranks,
                method=method,
                dropout=jnp.float32(config.dropout) if config.dropout else None,
                dtype=config.dtype,
            )
            leaves[path] = leaves[path] if start.moves_weight else leaf
        elif path in plan.biases:
            weight, ranks = plan.biases[path]
            lora[path] = BiasDelta.of(leaf, _layer_scaling(config, weight, ranks))
        elif path in plan.whole:
            lora[path] = WholeWeight.of(leaf)
        elif path in plan.rows:
            vocabulary, tokens = plan.rows[path]
            lora[path] = TokenRows.of(leaf, tokens, vocabulary)
    frozen = jax.tree.unflatten(structure, leaves.values()) if start.moves_weight else params
    return frozen, lora


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


@functools.partial(
    jax.jit,
    static_argnames=("start", "shape", "axes", "rank", "method", "dtype"),
)
def _adapted(
    weight: Any,
    key: jax.Array,
    scaling: jax.Array,
    *,
    start: _starts.Start,
    shape: tuple[int, ...],
    axes: Axes,
    rank: int,
    method: type[LoraWeight],
    dropout: jax.Array | None,
    dtype: str,
) -> tuple[Node, Any]:
    """A fresh node for one leaf, and the weight without what the start took into the adapter."""
    stack, inputs, outputs = (
        tuple(shape[dim] for dim in dims) for dims in (axes.stack, axes.inputs, axes.outputs)
    )
    if jnp.ndim(scaling):  # over further stack dimensions
        scaling = jnp.expand_dims(scaling, tuple(range(1, len(stack))))
        scaling = jnp.broadcast_to(scaling, (*stack, rank))
    whole = jnp.broadcast_to(scaling, (*stack, rank))
    matrices = None
    if start.moves_weight:
        moved = jnp.transpose(weight, (*axes.stack, *axes.inputs, *axes.outputs))
        matrices = moved.reshape(*stack, *matrix_shape(shape, axes))
        matrices = matrices.astype(wide(weight.dtype))
    a, b = start(
        _starts.Leaf(
            key=key,
            stack=stack,
            inputs=matrix_shape(shape, axes)[0],
            outputs=matrix_shape(shape, axes)[1],
            rank=rank,
            weight=matrices,
            scaling=jnp.where(whole == 0, 1, whole),
        )
    )
    node = LoraWeight(
        a=a.reshape(*stack, *inputs, rank).astype(dtype),
        b=b.reshape(*stack, rank, *outputs).astype(dtype),
        scaling=scaling,
        axes=axes,
        dropout=dropout,
    )
    residual = node.taken_from(weight) if start.moves_weight else None
    return method.of(node, weight), residual
