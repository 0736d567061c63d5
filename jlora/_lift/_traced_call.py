"""A call of the user's function as a jaxpr: arrays are traced, other values stay in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jlora._frozen_leaf import is_frozen_leaf
from jlora._lift import _jax


class TracedCall:
    """The jaxpr of ``fn(*args, **kwargs)``, and how flat results become its result again.

    Attributes:
        jaxpr: closed; takes the arrays among the leaves of (args, kwargs), in their order.
        leaves: all leaves of (args, kwargs).
        traced: the positions in ``leaves`` of what the jaxpr takes.
    """

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=is_frozen_leaf)
        self.traced = [at for at, leaf in enumerate(self.leaves) if _jax.is_array(leaf)]
        self._static: dict[int, Any] = {}
        self._structure: Any = None

        def flat_fn(*arrays):
            filled = list(self.leaves)
            for at, array in zip(self.traced, arrays, strict=True):
                filled[at] = array
            args, kwargs = jax.tree.unflatten(structure, filled)
            results, self._structure = jax.tree.flatten(fn(*args, **kwargs))
            self._static = {at: leaf for at, leaf in enumerate(results) if not _jax.is_array(leaf)}
            return [leaf for leaf in results if _jax.is_array(leaf)]

        flat_fn.__name__ = getattr(fn, "__name__", "fn")
        arrays = [_as_array(self.leaves[at]) for at in self.traced]
        with jax.disable_jit(False):  # loops are loops, whatever runs them
            self.jaxpr = jax.make_jaxpr(flat_fn)(*arrays)

    def unflatten(self, arrays: list[Any]) -> Any:
        """The function's result, from its arrays in order; Python values stand where they stood."""
        rest = iter(arrays)
        count = len(arrays) + len(self._static)
        leaves = [self._static[at] if at in self._static else next(rest) for at in range(count)]
        return jax.tree.unflatten(self._structure, leaves)


def _as_array(leaf: Any) -> Any:
    """What the function is traced with: an array in the place of a frozen leaf that is none."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_frozen_leaf(leaf) else leaf
