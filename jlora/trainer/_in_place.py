"""A jitted function whose first result takes the place of its second argument, on a mesh too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jlora import _placement


class InPlace:
    """``fn(frozen, state, *inputs) -> (state, others)``, jitted: the state is donated.

    On a mesh the new state lies as the one before did, leaf by leaf, and the others are whole on
    every device: a compiler left alone may lay them out anew.

    Args:
        fn: the function.
    """

    def __init__(self, fn: Callable[..., tuple[Any, Any]]):
        self._fn = fn
        self._jitted = functools.cache(self._on)  # one program store for each layout

    def __call__(self, frozen: Any, state: Any, *inputs: Any) -> tuple[Any, Any]:
        """The next state, and what else there is."""
        state = _on_one_mesh(state)
        return self._for(state)(frozen, state, *inputs)

    def trace(self, frozen: Any, state: Any, *inputs: Any) -> jax.stages.Traced:
        """As `jax.stages.Wrapped.trace`."""
        return self._for(state).trace(frozen, state, *inputs)

    def lower(self, frozen: Any, state: Any, *inputs: Any) -> jax.stages.Lowered:
        """As `jax.stages.Wrapped.lower`."""
        return self._for(state).lower(frozen, state, *inputs)

    def _for(self, state: Any) -> Any:
        leaves, structure = jax.tree.flatten(state)
        places = tuple(getattr(leaf, "sharding", None) for leaf in leaves)
        meshes = [place.mesh for place in places if isinstance(place, NamedSharding)]
        return self._jitted(structure, places, meshes[0]) if meshes else self._jitted()

    def _on(self, structure: Any = None, places: tuple[Any, ...] = (), mesh: Any = None) -> Any:
        if mesh is None:
            return jax.jit(self._fn, donate_argnums=1)
        whole = NamedSharding(mesh, PartitionSpec())
        its = [place if isinstance(place, NamedSharding) else whole for place in places]
        out = jax.tree.unflatten(structure, its), whole
        return jax.jit(self._fn, donate_argnums=1, out_shardings=out)


def _on_one_mesh(state: Any) -> Any:
    """The state with each array on the mesh of the others, where those that follow will lie.

    What was set anew, as the number of a run that goes on, would have a program of its own.
    """
    leaves = jax.tree.leaves(state)
    there = [leaf for leaf in leaves if isinstance(getattr(leaf, "sharding", None), NamedSharding)]
    if not there or len(there) == len(leaves):
        return state
    return _placement.on_mesh_of(state, there[0])
