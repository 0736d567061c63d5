"""The FLOPs of a traced function's products, with the body of a loop counted as often as it runs.

XLA's own count takes the body of each loop once, so a scanned model's layers are one layer there.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(jaxpr: Any, *, loops_once: bool = False) -> int:
    """Two for each multiplication and addition, of all products under this jaxpr.

    Matrix products and convolutions, also ragged ones. A ``while_loop`` counts once, a branch as
    if all were taken, and a kernel hides its products.
    """
    total = 0
    for equation in jaxpr.eqns:
        if count := _PRODUCTS.get(equation.primitive.name):
            total += 2 * count(equation)
        within = [p for p in jax.tree.leaves(equation.params) if isinstance(p, Jaxpr | ClosedJaxpr)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in within:
            inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            total += (1 if loops_once else times) * flops(inner, loops_once=loops_once)
    return total


def _of_dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    [out] = equation.outvars
    return out.aval.size * math.prod(shape[dim] for dim in contracted)


def _of_ragged_dot(equation: Any) -> int:
    """Each row meets one group's matrix: the rows' entries, each with what the other keeps."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    rows, matrices = (var.aval for var in equation.invars[:2])
    met = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return rows.size * math.prod(n for dim, n in enumerate(matrices.shape) if dim not in met)


def _of_convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval
    features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    [out] = equation.outvars
    return out.aval.size * kernel.size // features


_PRODUCTS = {
    "dot_general": _of_dot,
    "ragged_dot_general": _of_ragged_dot,
    "ragged_dot": _of_ragged_dot,
    "conv_general_dilated": _of_convolution,
}
