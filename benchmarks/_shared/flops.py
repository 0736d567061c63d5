"""The FLOPs of a traced function's products, with the body of a loop counted as often as it runs.

XLA's own count takes the body of each loop once, so a scanned model's layers are one layer there.
"""

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(jaxpr: Any, *, loops_once: bool = False) -> int:
    """Two for each multiplication and addition, of all matrix products under this jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += _of_product(equation)
        within = [p for p in jax.tree.leaves(equation.params) if isinstance(p, Jaxpr | ClosedJaxpr)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in within:
            inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            total += (1 if loops_once else times) * flops(inner, loops_once=loops_once)
    return total


def _of_product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    [out] = equation.outvars
    return 2 * out.aval.size * math.prod(shape[dim] for dim in contracted)
