"""The frozen tree that belongs to an adapter which started with part of the weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jlora import _paths
from jlora._config import LoraConfig
from jlora._frozen_leaf import replaced
from jlora._lora_dict import check
from jlora._method import Method
from jlora._node import Node
from jlora._registry import method_class


def frozen_beside(params: Any, start: Mapping[str, Node], config: LoraConfig) -> Any:
    """The frozen tree beside a start: ``W - scaling * A0 B0`` where it took that out of W.

    `split`, with PiSSA or OLoRA, and `lora_ga` gave it with the start. From a start that was kept
    it is formed again without the decompositions and the batches, which may come out differently
    on another device: what trained since then still belongs to it.

    Args:
        params: what was split.
        start: the adapter as it started.
        config: the configuration that came with it.

    Returns:
        a tree of the structure of ``params`` in containers of its own; with the same arrays where
        the start took no weight.

    Raises:
        ValueError: when ``start`` names a leaf that ``params`` has not, or one of another shape; or
            when a node's class does not say what it took (`jlora.extend.Method.taken_from`).

    Example:
        >>> import jax
        >>> import jlora
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (7, 5))}
        >>> config = jlora.LoraConfig(targets="kernel", rank=2, init="pissa")
        >>> frozen, start = jlora.split(params, config, jax.random.key(1))
        >>> again = jlora.frozen_beside(params, start, config)
        >>> bool((again["kernel"] == frozen["kernel"]).all())
        True
    """
    check(params, start)
    moves = method_class(str(config.method)).moves_weight(config.init)
    moved = {path: node for path, node in start.items() if moves and isinstance(node, Method)}
    kinds = {type(node) for node in moved.values()}
    if silent := sorted(k.__name__ for k in kinds if k.taken_from is Method.taken_from):
        raise ValueError(
            f"{', '.join(silent)}: the start took weight into the adapter, and the class does not "
            "say what stays of it: expected one with a method taken_from"
        )
    return without(params, moved)


def without(params: Any, nodes: Mapping[str, Any]) -> Any:
    """The tree without what these nodes hold of its leaves."""
    leaves, structure = _paths.flatten(params)
    for path, node in nodes.items():
        leaves[path] = replaced(leaves[path], lambda weight, node: node.taken_from(weight), node)
    return jax.tree.unflatten(structure, leaves.values())
