"""Which weights are output heads: those of the last product before a result of the function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jlora._lift import _compat

Last = frozenset[str]  # the weights of the products that a value comes from, with none between


def heads(jaxpr: Any, products: Mapping[int, set[str]]) -> set[str]:
    """The weights of which one alone is the last on the way to some result.

    Results that come from several last products, as a residual stream does, have no head. What a
    loop computes is no head.

    Args:
        jaxpr: of the function.
        products: from the id of an equation to the weights that it multiplies.
    """
    body, _ = _compat.open_jaxpr(jaxpr)
    results = _walk(body, [frozenset()] * len(body.invars), products, in_loop=False)
    return {path for last in results if len(last) == 1 for path in last if path}


def _walk(jaxpr: Any, operands: list[Last], products, in_loop: bool) -> list[Last]:
    jaxpr, _ = _compat.open_jaxpr(jaxpr)
    values: dict[Any, Last] = dict(zip(jaxpr.invars, operands, strict=True))

    def read(atom) -> Last:
        return frozenset() if isinstance(atom, _compat.Literal) else values.get(atom, frozenset())

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if id(eqn) in products:  # "" stands for a weight that can be no head
            last = frozenset([""]) if in_loop else frozenset(products[id(eqn)])
            results = [last] * len(eqn.outvars)
        else:
            results = _through(eqn, inputs, products, in_loop)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _through(eqn: Any, inputs: list[Last], products, in_loop: bool) -> list[Last]:
    """What comes out of an equation that is no product, or has products inside."""
    params, union = eqn.params, frozenset().union(*inputs)
    for name in ("jaxpr", "call_jaxpr"):
        if name in params and eqn.primitive.name != "scan":
            body, _ = _compat.open_jaxpr(params[name])
            if len(body.invars) == len(inputs) and len(body.outvars) == len(eqn.outvars):
                return _walk(body, inputs, products, in_loop)
    if "branches" in params:
        each = [_walk(branch, inputs[1:], products, in_loop) for branch in params["branches"]]
        return [frozenset().union(*results) for results in zip(*each, strict=True)]
    looped = params.get("jaxpr", params.get("body_jaxpr"))
    if looped is not None:  # its results may come from any of its inputs and products
        body, _ = _compat.open_jaxpr(looped)
        inside = _walk(body, [union] * len(body.invars), products, in_loop=True)
        return [union.union(*inside)] * len(eqn.outvars)
    return [union] * len(eqn.outvars)
