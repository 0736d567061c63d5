"""Where A and B live on a mesh: along the dimensions that they share with their weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from jlora import _paths
from jlora._methods import Node


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
    placed, problems = {}, []
    for path, node in lora.items():
        leaf = leaves.get(path)
        sharding = leaf if isinstance(leaf, NamedSharding) else getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            came = "no such leaf" if leaf is None else f"{type(sharding or leaf).__name__}"
            problems.append(f"{path}: expected a NamedSharding, got {came}")
            continue
        placed[path] = _of_node(node, sharding)
    if problems:
        raise ValueError("no layout for the adapter:\n  " + "\n  ".join(problems))
    return placed


def _of_node(node: Node, sharding: NamedSharding) -> Node:
    spec = dict(enumerate(sharding.spec))

    def along(dims: tuple[int | None, ...]) -> Any:
        entries = (None if dim is None else spec.get(dim) for dim in dims)
        return NamedSharding(sharding.mesh, PartitionSpec(*entries))

    return dataclasses.replace(
        node,  # type: ignore
        **{name: along(dims) for name, dims in node.dimensions().items()},
    )
