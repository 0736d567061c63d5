"""Seconds a step of each way, taken in turns in one process."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.costs._step import Step
from benchmarks.costs._ways import Way


def seconds(
    ways: Mapping[str, Way], steps: Mapping[str, Step], x: Any, rounds: int
) -> dict[str, list[float]]:
    """The time of each round, by way; a first round, in which memory is taken, is left out."""
    states = {}
    for name, way in ways.items():
        states[name] = filled((way.trained, steps[name].state, way.frozen))
    inputs = filled(x)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, (trained, state, frozen) in states.items():
            began = time.perf_counter()
            trained, state, value = steps[name].run(trained, state, frozen, inputs)
            jax.block_until_ready((trained, state, value))
            times[name].append(time.perf_counter() - began)
            assert jnp.isfinite(value), f"{name}: the loss is {value}"
            states[name] = trained, state, frozen
    return {name: each[1:] for name, each in times.items()}


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
