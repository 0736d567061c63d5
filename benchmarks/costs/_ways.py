"""A way to write a LoRA train step, and those that need no library: in full, merged, lifted."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jlora

RANK, KEY = 8, jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Way:
    """A loss of two trees, of which the first trains; shapes are enough."""

    trained: Any
    frozen: Any
    loss: Callable[[Any, Any, Any], jax.Array]  # (trained, frozen, x)


def squared(outputs: jax.Array) -> jax.Array:
    """A loss that needs no labels."""
    return jnp.mean(outputs.astype(jnp.float32) ** 2)


def general_ways(apply: Callable, params: Any, x: Any, targets: Any = "all-linear") -> dict:
    """Everything in full, the merged weight under the gradient, and `jlora.lift`."""
    axes = jlora.trace_axes(apply, params, x)
    config = jlora.LoraConfig(targets=targets, rank=RANK)
    frozen, lora = jax.eval_shape(lambda p: jlora.split(p, config, KEY, axes=axes), params)
    factors, scalings = factors_of(lora)

    def merged(factors, frozen, x):
        return squared(apply(jlora.merge(frozen["w"], with_factors(lora, factors, frozen)), x))

    def lifted(factors, frozen, x):
        lora_now = with_factors(lora, factors, frozen)
        return squared(jlora.lift(apply, strict=True)(frozen["w"], lora_now, x))

    trees = factors, {"w": frozen, "scalings": scalings}
    return {
        "everything": Way(params, (), lambda trained, _, x: squared(apply(trained, x))),
        "W + A B under the gradient": Way(*trees, merged),
        "jlora.lift": Way(*trees, lifted),
    }


def factors_of(lora: dict) -> tuple[dict, dict]:
    """({path: (A, B)}, {path: scaling}): what trains, and what does not."""
    factors = {path: (node.a, node.b) for path, node in lora.items()}
    return factors, {path: node.scaling for path, node in lora.items()}


def with_factors(lora: dict, factors: dict, frozen: dict) -> dict:
    """The adapter of these factors."""
    return {
        path: dataclasses.replace(
            node, a=factors[path][0], b=factors[path][1], scaling=frozen["scalings"][path]
        )
        for path, node in lora.items()
    }


def installed(package: str) -> Any:
    """The package, or None."""
    try:
        return importlib.import_module(package)
    except ImportError:
        return None
