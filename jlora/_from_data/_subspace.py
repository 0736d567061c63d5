"""Adapters as stacks of matrices, and the steps of a subspace iteration on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jlora import _paths
from jlora._config import LoraConfig
from jlora._lora_dict import check
from jlora._methods import LoraWeight
from jlora._node import Node
from jlora._registry import method_class
from jlora._starts import drawn


def adapted(
    frozen: Any, lora: Mapping[str, Node], config: LoraConfig, what: str
) -> dict[str, LoraWeight]:
    """The nodes that are an A and a B over a weight's axes, as `LoraWeight` has them.

    Raises:
        ValueError: when there is none, when ``lora`` does not fit ``frozen``, or holds some of its
            weight, which would be lost with the A and B that hold it.
    """
    check(frozen, lora)
    found = {path: node for path, node in lora.items() if isinstance(node, LoraWeight)}
    if not found:
        kinds = sorted({type(node).__name__ for node in lora.values()})
        raise ValueError(
            f"{what} starts A and B, but no node of the adapter has them: expected LoraWeights, or "
            f"nodes of a class of it, got {' and '.join(kinds)}"
        )
    if pooled := [path for path, node in found.items() if node.constant_along is not None]:
        raise ValueError(
            f"{what} gives each input a row of A of its own, but that of {pooled[0]} is for blocks "
            "of inputs: leave it the start that it has"
        )
    if method_class(str(config.method)).moves_weight(config.init):
        raise ValueError(
            f"{what} gives A and B another start, but init is {config.init!r}, which took weight "
            'into the A and B that are there: split with another init, such as "kaiming"'
        )
    return found


def sizes(node: LoraWeight) -> tuple[tuple[int, ...], int, int]:
    """(stack, inputs, outputs) of the weight as a stack of matrices."""
    stack, inputs, outputs = (
        tuple(node.shape[dim] for dim in dims)
        for dims in (node.axes.stack, node.axes.inputs, node.axes.outputs)
    )
    return stack, math.prod(inputs), math.prod(outputs)


def orthonormal(matrix: jax.Array) -> jax.Array:
    """An orthonormal basis of each matrix's columns."""
    return jnp.linalg.qr(matrix)[0]


def start_directions(
    nodes: Mapping[str, LoraWeight], key: jax.Array, of_outputs: bool, widths: Mapping[str, int]
) -> dict[str, jax.Array]:
    """Random orthonormal columns for each leaf, (*stack, inputs or outputs, width)."""
    directions = {}
    for path, node in nodes.items():
        stack, inputs, outputs = sizes(node)
        shape = (*stack, outputs if of_outputs else inputs, widths[path])
        directions[path] = orthonormal(drawn(_paths.key_for(key, path), shape, jnp.float32))
    return directions


def summed(gradient: Any, nodes: Any, batches: Iterable[Any], what: str) -> Any:
    """The sum over the batches of ``gradient(nodes, batch)``, and how many there were.

    Raises:
        ValueError: when there is no batch.
    """
    total, count = None, 0
    for batch in batches:
        one = gradient(nodes, batch)
        total = one if total is None else jax.tree.map(jnp.add, total, one)
        count += 1
    if total is None:
        raise ValueError(f"{what} reads a few batches, but got none")
    return total, count
