"""`trace_axes`: how a function uses each of its weights, read off its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jlora import _paths
from jlora._lift import _compat
from jlora._lift._heads import heads
from jlora._lift._stage import Staged
from jlora._lift._tracked import MOVES, ROLES, Tracked
from jlora._lowrank import Axes


class TracedAxes(dict[str, Axes]):
    """The axes of every weight that a product uses; ``unclear`` says why others are missing.

    Attributes:
        unclear: from the path of a weight of two or more dimensions (stacks not counted) that no
            product was seen to use as it is, to what was seen instead.
        linear: the paths of the weights that products use, without tables that rows are looked up
            in and without output heads: those whose product is the last before a result.
    """

    unclear: dict[str, str]
    linear: frozenset[str]


def trace_axes(fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> TracedAxes:
    """How ``fn(params, *args)`` uses each weight: which dimensions are in, out and stacked.

    Runs ``fn`` abstractly (no FLOPs; ``jax.ShapeDtypeStruct`` will do for any array) and reads off
    each product: dimensions that it contracts are inputs, those that it keeps are outputs, those
    that a scan or a batch runs over are stacks. In a lookup the chosen dimension is the input. A
    weight used twice, as a tied embedding, is read by its first use; a second use that only swaps
    inputs and outputs is as cheap.

    Returns:
        A dict from the leaf's path to its `Axes`, to be passed to `split`; leaves that no product
        uses (biases, scales) are not in it, and ``.unclear`` explains the doubtful ones.

    Example:
        >>> axes = jlora.trace_axes(model.apply, params, tokens)
        >>> frozen, lora = jlora.split(params, config, key, axes=axes)
    """
    leaves, _ = _paths.flatten(params)
    staged = Staged(fn, (params, *args), kwargs)
    paths = dict(enumerate(leaves))
    shapes = {path: np.shape(leaf) for path, leaf in leaves.items()}
    tracer = _Tracer()
    operands = [
        Tracked(paths[at], tuple((d,) for d in range(len(shapes[paths[at]]))), shapes[paths[at]])
        if at in paths
        else None
        for at in staged.traced
    ]
    tracer(staged.jaxpr, operands)
    found = TracedAxes(tracer.found)
    unmet = {path for path, shape in shapes.items() if len(_wide(shape)) >= 2} - tracer.met
    other = tracer.other | dict.fromkeys(unmet, "no operation was seen to use it")
    multiplied = frozenset().union(*tracer.products.values())
    apart = tracer.looked_up | heads(staged.jaxpr, tracer.products)
    found.linear = (multiplied & found.keys()) - apart
    found.unclear = {path: other[path] for path in leaves if path in other.keys() - found.keys()}
    return found


class _Tracer:
    """Follows leaves through a jaxpr and notes the roles that products give their dimensions."""

    def __init__(self):
        self.found: dict[str, Axes] = {}
        self.other: dict[str, str] = {}
        self.met: set[str] = set()
        self.looked_up: set[str] = set()
        self.products: dict[int, set[str]] = {}  # from an equation's id to its weights

    def __call__(self, jaxpr: Any, operands: list[Tracked | None]) -> list[Tracked | None]:
        jaxpr, _ = _compat.open_jaxpr(jaxpr)
        values = dict(zip(jaxpr.invars, operands, strict=True))

        def read(atom):
            return None if isinstance(atom, _compat.Literal) else values.get(atom)

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            if any(operands):
                values.update(zip(eqn.outvars, self._equation(eqn, operands), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[Tracked | None]) -> list[Tracked | None]:
        name = eqn.primitive.name
        if name in MOVES:
            moved = MOVES[name](eqn, operands)
            if moved is not None:
                return moved
        elif name in ROLES:
            for side, value in enumerate(operands):
                for each in () if value is None else value.each():
                    self.product(each, *ROLES[name](eqn, side, each))
                    self.products.setdefault(id(eqn), set()).add(each.path)
            return [None] * len(eqn.outvars)
        elif name in _BODIES:
            return _BODIES[name](self, eqn, operands)
        for value, atom in zip(operands, eqn.invars, strict=True):
            for each in () if value is None else value.each():
                self.elsewhere(each, eqn, atom.aval.shape)
        return [None] * len(eqn.outvars)

    def product(self, value: Tracked, inputs: frozenset[int], outputs: frozenset[int]) -> None:
        """Note a product; what it neither contracts nor keeps is a stack."""
        self.met.add(value.path)
        if value.path in self.found:
            return
        chosen = value.chosen - value.stack
        if chosen and not (inputs - value.stack and outputs - value.stack):
            inputs, outputs = chosen, (inputs | outputs) - chosen  # rows looked up, then multiplied
        if inputs & outputs:
            self.other[value.path] = "one of its dimensions is partly contracted and partly kept"
            return
        stack = frozenset(range(len(value.shape))) - inputs - outputs
        inputs, outputs = inputs - value.stack, outputs - value.stack
        if not inputs or not outputs:
            wide = [dim for dim in inputs | outputs if value.shape[dim] != 1]
            if len(wide) >= 2:  # else a vector: a bias or a scale
                self.other.setdefault(value.path, "a product contracts all of it, or nothing")
            return
        self.found[value.path] = Axes(
            inputs=tuple(sorted(inputs)),
            outputs=tuple(sorted(outputs)),
            stack=tuple(sorted(stack | value.stack)),
        )

    def elsewhere(self, value: Tracked, eqn: Any, shape: tuple[int, ...]) -> None:
        """Note a use that is no product: a lookup has its roles, anything else is told."""
        self.met.add(value.path)
        kept = value.at(*range(len(value.dims))) - value.stack - value.chosen
        if value.chosen - value.stack and kept:
            self.looked_up.add(value.path)
            self.product(value, value.chosen - value.stack, kept)
        elif len(kept & value.at(*_wide(shape))) >= 2 and not _is_bias(value, eqn, shape):
            self.other.setdefault(
                value.path,
                f"`{eqn.primitive.name}` at {_compat.source(eqn)} computes with it, "
                "and that is no product",
            )


def _wide(shape: tuple[int, ...]) -> list[int]:
    return [dim for dim, size in enumerate(shape) if size != 1]


def _is_bias(value: Tracked, eqn: Any, shape: tuple[int, ...]) -> bool:
    """Whether the value is added to something larger; a multiplied one may be a product."""
    return eqn.primitive.name != "mul" and (value.spread or _widens(shape, eqn))


def _widens(shape: tuple[int, ...], eqn: Any) -> bool:
    """Whether an operation broadcasts this operand, as a bias is over the batch."""
    if eqn.primitive.name in ("concatenate", "stack", "pad"):  # beside other values, whole
        return False
    return any(math.prod(out.aval.shape) > math.prod(shape) for out in eqn.outvars)


# Bodies: (tracer, equation, operands) -> results


def _body(parameter: str):
    return lambda tracer, eqn, operands: tracer(eqn.params[parameter], operands)


def _scan_body(tracer, eqn, operands):
    consts, carried = _compat.scan_counts(eqn)

    def step(value):
        if value is None:
            return None
        return value.map(
            lambda each: each.replace(dims=each.dims[1:], stack=each.stack | each.at(0))
        )

    inner = [v if at < consts + carried else step(v) for at, v in enumerate(operands)]
    results = tracer(eqn.params["jaxpr"], inner)
    return [*results[:carried], *([None] * (len(results) - carried))]


def _while_body(tracer, eqn, operands):
    cond_consts, body_consts, carry = _compat.partition(
        operands, eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    )
    tracer(eqn.params["cond_jaxpr"], [*cond_consts, *carry])
    return tracer(eqn.params["body_jaxpr"], [*body_consts, *carry])


def _cond_body(tracer, eqn, operands):
    results = [tracer(branch, operands[1:]) for branch in eqn.params["branches"]]
    return [
        first if all(v == first for v in rest) else None
        for first, *rest in zip(*results, strict=True)
    ]


_BODIES: dict[str, Callable[[_Tracer, Any, list[Any]], list[Any]]] = {
    "jit": _body("jaxpr"),
    "pjit": _body("jaxpr"),
    "checkpoint": _body("jaxpr"),
    "remat": _body("jaxpr"),
    "remat2": _body("jaxpr"),
    "closed_call": _body("call_jaxpr"),
    "core_call": _body("call_jaxpr"),
    "custom_jvp_call": _body("call_jaxpr"),
    "custom_vjp_call": _body("call_jaxpr"),
    "shard_map": _body("jaxpr"),
    "scan": _scan_body,
    "while": _while_body,
    "cond": _cond_body,
}
