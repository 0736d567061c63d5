"""One layer of a leaf with its part of an adapter, and what must hold before it is formed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora._lora_dict import check, of_leaves
from jlora._node import Node, Shared
from jlora.models._files._layer_by_layer import Piece
from jlora.models._files._stacking import expected_shapes, stacked
from jlora.models._net._encoder_config import Config


def merged(
    weight: np.ndarray, node: Node | None, shared: Shared, piece: Piece, dtype: np.dtype
) -> np.ndarray:
    """The weight with its layer of the adapter, in ``dtype``."""
    if node is None:
        return cast(weight, dtype, piece)
    # as wide as the wider of the two, so that nothing is rounded before the sum
    wide = jnp.asarray(weight, jnp.promote_types(weight.dtype, dtype))
    if piece.at is None:
        result = np.asarray(node.merged(wide, shared).astype(dtype))
    else:
        part = node.part(0, piece.at)
        result = np.asarray(part.merged(wide[None], shared)[0].astype(dtype))
    return finite_as(weight, result, piece)


def cast(weight: np.ndarray, dtype: np.dtype, what: object) -> np.ndarray:
    """The weight as it is, in ``dtype``."""
    with np.errstate(over="ignore"):  # said below
        return finite_as(weight, weight.astype(dtype, copy=False), what)


def finite_as(weight: np.ndarray, result: np.ndarray, what: object) -> np.ndarray:
    """The result, unless it has lost a finite value."""
    if not np.isfinite(result).all() and np.isfinite(weight).all():
        name = result.dtype.name
        raise ValueError(f"{what}: the merged weight has values that {name} can't hold")
    return result


def check_adapter(config: Config, lora: Mapping[str, Node]) -> None:
    """Raises a ValueError unless every node fits its leaf and can be taken apart by layers."""
    check(_shapes(config), lora)
    problems = []
    for path, node in of_leaves(lora).items():
        try:
            if stacked(path):
                node.part(0, 0)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ValueError("the adapter can't be merged layer by layer:\n  " + "\n  ".join(problems))


def trained_on(
    config: Config,
    lora: Mapping[str, Node],
    base: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
) -> list[Base]:
    """The bases to compare the weights with: those of the fingerprints.

    Raises:
        ValueError: when one is of other shapes.
    """
    bases = (base or {},) if isinstance(base, Mapping | None) else base
    replaced = {path for path, node in lora.items() if node.replaces}  # a fresh head, say
    of_base = {path: each for path, each in _shapes(config).items() if path not in replaced}
    return [
        Base({path: leaf for path, leaf in each.items() if path not in replaced}, of_base)
        for each in bases
    ]


def _shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in expected_shapes(config).items()
    }


class Base:
    """Compares the weights, as they come by, with the fingerprint of those that were trained on."""

    def __init__(self, fingerprint: Mapping[str, Any], shapes: Mapping[str, Any]):
        from jlora.checkpoint import Parts, differences

        found = {
            path: {
                "shape": list(leaf.shape),
                "dtype": fingerprint.get(path, {}).get("dtype", "unknown"),  # any will do
                "values": None,
            }
            for path, leaf in shapes.items()
        }
        if fingerprint and (lines := differences(fingerprint, found)):
            raise ValueError(_ANOTHER + "\n  ".join(("", *lines[:6])))
        self._leaves = fingerprint
        self._parts = {
            path: Parts(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]))
            for path, leaf in fingerprint.items()
            if leaf["values"] is not None
        }

    def see(self, piece: Piece, weight: np.ndarray) -> None:
        """Raises a ValueError once all of a leaf was seen and it is another."""
        from jlora.checkpoint import differences

        parts = self._parts.get(piece.path)
        if parts is None:
            return
        parts.see(weight, () if piece.at is None else (piece.at,))
        known = {piece.path: self._leaves[piece.path]}
        if parts.fingerprint and differences(known, {piece.path: parts.fingerprint}):
            raise ValueError(f"{_ANOTHER} {piece.path}: the shape agrees, the values are others")


_ANOTHER = "the adapter was trained on another base than the one given:"
