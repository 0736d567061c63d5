"""The lora dict: a node for each adapted leaf by its path, and what nodes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jlora import _paths, _words
from jlora._node import Node, Shared

Lora = dict[str, Node]

_SHARED = "shared/"
_SHOWN = 18  # leaves that an error names


def shared_name(name: str) -> str:
    """The key of a shared factor in a lora dict."""
    return f"{_SHARED}{name}"


def is_shared(path: str, node: Any) -> bool:
    """Whether an entry is a shared factor and no node of a leaf, which may have such a path too."""
    return path.startswith(_SHARED) and getattr(type(node), "kind", None) == "shared"


def shared_of(lora: Mapping[str, Node]) -> Shared:
    """The shared factors of a lora dict, by their names."""
    return {
        path.removeprefix(_SHARED): node.value  # type: ignore
        for path, node in lora.items()
        if is_shared(path, node)
    }


def of_leaves(lora: Mapping[str, Node]) -> dict[str, Node]:
    """The nodes that adapt a leaf."""
    return {path: node for path, node in lora.items() if not is_shared(path, node)}


def check_is_adapter(lora: Any) -> None:
    """Refuses what is no adapter at all, such as parameters in its place.

    Raises:
        ValueError: when no entry is a node: with what came.
    """
    if isinstance(lora, Mapping) and (not lora or any(isinstance(v, Node) for v in lora.values())):
        return
    came = type(lora).__name__
    if isinstance(lora, Mapping):
        came += f" with {_words.named(map(str, lora))}"
    raise ValueError(
        "lora is no adapter: expected the second result of split, a dict from paths to nodes, "
        f"got {came}. Adapted functions take (frozen, lora, ...)"
    )


def check(tree: Any, lora: Mapping[str, Node]) -> tuple[dict[str, Any], Any]:
    """The flattened tree, once every node of ``lora`` is known to fit its leaf.

    Raises:
        ValueError: naming every node that fits no leaf, with both shapes.
    """
    check_is_adapter(lora)
    leaves, structure = _paths.flatten(tree)
    shared, problems = shared_of(lora), []
    for path, node in lora.items():
        if not isinstance(node, Node):
            problems.append(f"{path}: expected a LoraWeight, got {type(node).__name__}")
        elif is_shared(path, node):
            if path in leaves:
                problems.append(f"{path}: a shared factor has the path of a leaf")
        elif path not in leaves:
            problems.append(f"{path}: no such leaf. {_paths.nearest(path, leaves, 3)}")
        elif problem := node.misfit(np.shape(leaves[path]), shared):
            problems.append(f"{path}: {problem}")
    if problems:
        raise ValueError(
            f"the adapter does not fit the parameters:{_words.first_few(problems, _SHOWN)}"
        )
    return leaves, structure
