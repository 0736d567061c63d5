"""Whether a program is linear in an operand: asked of its numbers, not of its name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from program import Program, inexact

FLOAT32 = 1e-4  # of the largest entry
# large weights too: a minimum is linear below what it is compared with
DRAWS = ((0.75, -1.5, 3), (-2.0, 0.25, 3), (-1.5, 0.75, 99), (0.25, -2.0, 99))


def linearity(program: Program, slack: float) -> str | None:
    """``"linear"``, ``"linear, and a constant"``, or None.

    By ``f(a U + b V) = a f(U) + b f(V)``, with ``f(0)`` taken off, for a few a, b, U and V. A
    program that gives anything but floats, or always the same, is neither.

    Args:
        program: the use of the operand.
        slack: what its coarsest type may lose, relative to the largest entry.
    """
    if not all(inexact(leaf.dtype) for leaf in program.shapes):
        return None
    draw = np.random.default_rng(0)
    shape, varies = program.weight.shape, False
    zero = _entries(program, np.zeros(shape))
    constant = ~np.isfinite(zero)  # such as NaN, which a gather fills with
    for a, b, scale in DRAWS:
        u, v = (scale * draw.standard_normal(shape) for _ in range(2))
        of_u, of_v, of_sum = (_entries(program, each) for each in (u, v, a * u + b * v))
        if any(_differ(each[constant], zero[constant]).any() for each in (of_u, of_v, of_sum)):
            return None
        got, want = ((of_sum - zero)[~constant], (a * (of_u - zero) + b * (of_v - zero))[~constant])
        if not np.isfinite(got).all() or not np.isfinite(want).all():
            return None
        size = np.abs(want).max(initial=0)
        rounding = 1e-6 * np.abs(zero[~constant]).max(initial=0)
        if np.abs(got - want).max(initial=0) > max(FLOAT32, slack) * size + rounding:
            return None
        varies |= size > 1e-6
    if not varies:
        return None
    return "linear, and a constant" if zero.any() else "linear"


def _entries(program: Program, weight: np.ndarray) -> np.ndarray:
    """All results for this weight in one row."""
    results = program.value(jnp.asarray(weight, program.weight.dtype))
    leaves = [np.asarray(leaf).astype("complex128").ravel() for leaf in jax.tree.leaves(results)]
    return np.concatenate(leaves)


def _differ(one: Any, other: Any) -> Any:
    return (one != other) & ~(np.isnan(one) & np.isnan(other))
