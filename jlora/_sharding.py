"""Where A and B live on a mesh: along the dimensions that they share with their weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jlora import _paths
from jlora._lora_dict import of_leaves
from jlora._lowrank import RANK, Dims
from jlora._node import Node


def shardings(tree: Any, lora: Mapping[str, Node]) -> dict[str, Node]:
    """A `jax.sharding.NamedSharding` for each leaf of ``lora``: as its weight's, the rank whole.

    A has the weight's layout on stack and input dimensions, B on stack and output dimensions;
    ``scaling`` is on every device. For ``jax.device_put(lora, ...)`` or jit's ``in_shardings``.

    Args:
        tree: the parameters (arrays laid out on a mesh), or a tree of NamedShardings like them.
        lora: the adapter (shapes are enough).

    Raises:
        ValueError: when an adapted leaf is not there or has no NamedSharding.

    Example:
        >>> lora = jax.device_put(lora, jlora.shardings(frozen, lora))
    """
    leaves, _ = _paths.flatten(tree)
    placed, problems, mesh = {}, [], None
    for path, node in of_leaves(lora).items():
        leaf = leaves.get(path)
        sharding = leaf if isinstance(leaf, NamedSharding) else getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            came = "no such leaf" if leaf is None else f"{type(sharding or leaf).__name__}"
            problems.append(f"{path}: expected a NamedSharding, got {came}")
            continue
        placed[path] = _of_node(node, sharding)
        mesh = sharding.mesh
    if problems:
        raise ValueError("no layout for the adapter:\n  " + "\n  ".join(problems))
    if mesh is not None:  # what several leaves share is on every device
        everywhere = NamedSharding(mesh, PartitionSpec())
        shared = {path: node for path, node in lora.items() if path not in placed}
        placed |= jax.tree.map(lambda _: everywhere, shared)
    return {path: placed[path] for path in lora}


def _of_node(node: Node, sharding: NamedSharding) -> Node:
    spec = dict(enumerate(sharding.spec))

    def along(dims: Dims) -> Any:
        entries = (None if dim == RANK else spec.get(dim) for dim in dims)
        return NamedSharding(sharding.mesh, PartitionSpec(*entries))

    return dataclasses.replace(
        node,  # type: ignore
        **{name: along(dims) for name, dims in node.dimensions().items()},
    )
