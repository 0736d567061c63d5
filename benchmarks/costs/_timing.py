"""Seconds a step of each way, taken in turns in one process."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._shared.turns import seconds_in_turns
from benchmarks.costs._step import Step
from benchmarks.costs._ways import Way


def seconds(
    ways: Mapping[str, Way], steps: Mapping[str, Step], x: Any, rounds: int
) -> dict[str, list[float]]:
    """The time of each round, by way; a first round, in which memory is taken, is left out."""
    inputs = filled(x)

    def stepping(name: str) -> Callable[[], Any]:
        way = ways[name]
        trees = filled((way.trained, steps[name].state, way.frozen))

        def run() -> Any:
            nonlocal trees
            trained, state, value = steps[name].run(*trees, inputs)
            trees = trained, state, trees[2]
            return trained, state, value

        return run

    return seconds_in_turns({name: stepping(name) for name in ways}, rounds)


def filled(shapes: Any) -> Any:
    """Arrays of these shapes: small random numbers, small whole ones, keys."""
    random = np.random.default_rng(0)

    def array(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(0.02 * np.abs(random.standard_normal(leaf.shape)), leaf.dtype)
        return jnp.asarray(random.integers(0, 512, leaf.shape), leaf.dtype)

    return jax.tree.map(array, shapes)
