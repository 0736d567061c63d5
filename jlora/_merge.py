"""The plain tree for inference from (frozen, lora), and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jlora._frozen_leaf import replaced
from jlora._lora_dict import check, shared_of
from jlora._node import Node, Shared


def merge(frozen: Any, lora: Mapping[str, Node]) -> Any:
    """The plain tree for inference: ``W + scaling * A B`` at each adapted leaf.

    With magnitudes where the method has them, and a leaf that trains whole in the frozen one's
    place. The sum is formed in float32 (or wider, if the weight is) and cast once to the weight's
    dtype. With a bfloat16 weight the result carries bfloat16's rounding: three digits.

    Args:
        frozen: from `split`.
        lora: from `split`, trained.

    Returns:
        a tree of the structure of ``frozen``.

    Raises:
        ValueError: when ``lora`` names a leaf that ``frozen`` has not, or one of another shape.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> params = jlora.merge(frozen, lora)
        >>> params["kernel"].shape, bool((params["kernel"] == 1).all())  # nothing has trained yet
        ((7, 5), True)
    """
    leaves, structure = check(frozen, lora)
    shared = shared_of(lora)
    new = [
        _merged(leaf, lora[path], shared) if path in lora else leaf for path, leaf in leaves.items()
    ]
    return jax.tree.unflatten(structure, new)


def unmerge(params: Any, lora: Mapping[str, Node]) -> Any:
    """The frozen tree back from merged ``params``: ``W - scaling * A B`` at each adapted leaf.

    For merged parameters whose base is gone. It is exact only to the rounding of the weight's
    dtype; if the frozen tree was kept, use that.

    Args:
        params: from `merge`.
        lora: the adapter that was merged.

    Returns:
        a tree of the structure of ``params``.

    Raises:
        ValueError: as `merge`, and where the merged weight does not hold the frozen one any more
            (DoRA, leaves that trained whole): each such leaf is named.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> back = jlora.unmerge(jlora.merge(frozen, lora), lora)
        >>> bool(jnp.allclose(back["kernel"], frozen["kernel"]))
        True
    """
    leaves, structure = check(params, lora)
    shared, new, problems = shared_of(lora), [], []
    for path, leaf in leaves.items():
        try:
            new.append(_unmerged(leaf, lora[path], shared) if path in lora else leaf)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ValueError("\n  ".join(("this adapter can't be unmerged:", *problems)))
    return jax.tree.unflatten(structure, new)


def _merged(leaf: Any, node: Node, shared: Shared) -> Any:
    return replaced(leaf, lambda weight, node, shared: node.merged(weight, shared), node, shared)


def _unmerged(leaf: Any, node: Node, shared: Shared) -> Any:
    return replaced(leaf, lambda weight, node, shared: node.unmerged(weight, shared), node, shared)
