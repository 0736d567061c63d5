"""What jlora does with one model: how far off the merged weight's results it is, what it takes."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jlora


def checked(fn: Callable[..., jax.Array], params: Any, *args: Any) -> dict[str, Any]:
    """The model's row of the table, as JSON holds it.

    Every weight that a product uses gets an adapter of rank 1, so that what has to be merged is
    seen; ``"all-linear"`` is asked what it takes.
    """
    axes = jlora.trace_axes(fn, params, *args)
    paths = list(axes.axes)
    config = jlora.LoraConfig(targets="|".join(map(jlora.LoraConfig.pattern_of, paths)), rank=1)
    with warnings.catch_warnings(action="ignore"):  # what is merged stands in the report
        frozen, lora = jlora.split(params, config, jax.random.key(0), axes=axes)
        lora = trained(lora)
        report = jlora.explain(fn, frozen, lora, *args)
        value, gradient = differences(fn, frozen, lora, args)
    merged = Counter(
        (_numberless(use.path), use.operation, use.why) for use in report.uses if use.merged
    )
    return {
        "weights": len(paths),
        "all_linear": len(axes.linear),
        "left_out": dict(Counter(axes.left_out.values())),
        "unclear": dict(Counter(axes.unclear.values())),
        "uses": len(report.uses),
        "merged": [
            {"leaf": path, "operation": operation, "reason": reason, "uses": count}
            for (path, operation, reason), count in merged.items()
        ],
        "value": value,
        "gradient": gradient,
    }


def trained(lora: dict[str, Any]) -> dict[str, Any]:
    """The adapter with noise for B, as if it had trained."""
    keys = jax.random.split(jax.random.key(1), len(lora))
    return {
        path: dataclasses.replace(
            node, b=0.1 * jax.random.normal(key, node.b.shape).astype(node.b.dtype)
        )
        for key, (path, node) in zip(keys, lora.items(), strict=True)
    }


def differences(fn: Callable, frozen: Any, lora: Any, args: tuple) -> tuple[float, float]:
    """How far value and gradient are from the merged weight's, as shares of the largest entry."""

    def both(apply: Callable[[Any], jax.Array]) -> tuple[jax.Array, Any]:
        def total(lora):
            value = apply(lora)
            return (value * jnp.cos(jnp.arange(value.size)).reshape(value.shape)).sum(), value

        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(lora)
        return value, gradient

    lifted = jax.jit(lambda lora: both(lambda lora: jlora.lift(fn)(frozen, lora, *args)))
    merged = jax.jit(lambda lora: both(lambda lora: fn(jlora.merge(frozen, lora), *args)))
    with jax.default_matmul_precision("highest"):
        (got, got_gradient), (want, want_gradient) = lifted(lora), merged(lora)
    names = [(path, part) for path in lora for part in ("a", "b")]
    largest = max(np.abs(getattr(want_gradient[path], part)).max() for path, part in names)
    apart = max(
        np.abs(getattr(got_gradient[path], part) - getattr(want_gradient[path], part)).max()
        for path, part in names
    )
    assert largest > 0, "no gradient to compare"
    return float(np.abs(got - want).max() / np.abs(want).max()), float(apart / largest)


def _numberless(path: str) -> str:
    """The path with a star for each number: like layers are told of once."""
    return re.sub(r"\d+", "*", path)
