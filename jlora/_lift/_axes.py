"""`trace_axes`: how a function uses each of its weights, read off its jaxpr."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jlora import _paths
from jlora._lift import _compat
from jlora._lift._adapted import Opaque
from jlora._lift._movement import regroup
from jlora._lift._stage import Staged
from jlora._lowrank import Axes


class TracedAxes(dict[str, Axes]):
    """The axes of every weight that a product uses; ``unclear`` says why others are missing.

    Attributes:
        unclear: from the path of a weight of two or more dimensions (stacks not counted) that no
            product was seen to use as it is, to what was seen instead.
    """

    unclear: dict[str, str]


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
        _Tracked(paths[at], tuple((d,) for d in range(len(shapes[paths[at]]))), shapes[paths[at]])
        if at in paths
        else None
        for at in staged.traced
    ]
    tracer(staged.jaxpr, operands)
    found = TracedAxes(tracer.found)
    unmet = {path for path, shape in shapes.items() if len(_wide(shape)) >= 2} - tracer.met
    other = tracer.other | dict.fromkeys(unmet, "no operation was seen to use it")
    found.unclear = {path: other[path] for path in leaves if path in other.keys() - found.keys()}
    return found


@dataclasses.dataclass(frozen=True)
class _Tracked:
    """A value that is a leaf moved about."""

    path: str
    dims: tuple[tuple[int, ...], ...]  # for each dimension: the leaf's dimensions in it
    shape: tuple[int, ...]  # of the leaf
    stack: frozenset[int] = frozenset()  # the leaf's dimensions that a loop runs over
    chosen: frozenset[int] = frozenset()  # the leaf's dimensions that were indexed
    spread: bool = False  # broadcast over something else, as a bias is
    beside: tuple[_Tracked, ...] = ()  # other leaves in the same array: fused weights

    def at(self, *dims: int) -> frozenset[int]:
        return frozenset(source for dim in dims for source in self.dims[dim])

    def replace(self, **changes: Any) -> _Tracked:
        return dataclasses.replace(self, **changes)

    def each(self) -> tuple[_Tracked, ...]:
        return (self.replace(beside=()), *self.beside)

    def map(self, change: Callable[[_Tracked], _Tracked | None]) -> _Tracked | None:
        """The same change to each leaf in the array."""
        changed = [new for value in self.each() if (new := change(value)) is not None]
        if len(changed) <= len(self.beside):
            return None
        return changed[0].replace(beside=tuple(changed[1:]))


class _Tracer:
    """Follows leaves through a jaxpr and notes the roles that products give their dimensions."""

    def __init__(self):
        self.found: dict[str, Axes] = {}
        self.other: dict[str, str] = {}
        self.met: set[str] = set()

    def __call__(self, jaxpr: Any, operands: list[_Tracked | None]) -> list[_Tracked | None]:
        jaxpr, _ = _compat.open_jaxpr(jaxpr)
        values = dict(zip(jaxpr.invars, operands, strict=True))

        def read(atom):
            return None if isinstance(atom, _compat.Literal) else values.get(atom)

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            if any(operands):
                values.update(zip(eqn.outvars, self._equation(eqn, operands), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[_Tracked | None]) -> list[_Tracked | None]:
        name = eqn.primitive.name
        if name in _MOVES:
            moved = _MOVES[name](eqn, operands)
            if moved is not None:
                return moved
        elif name in _ROLES:
            for side, value in enumerate(operands):
                for each in () if value is None else value.each():
                    self.product(each, *_ROLES[name](eqn, side, each))
            return [None] * len(eqn.outvars)
        elif name in _BODIES:
            return _BODIES[name](self, eqn, operands)
        for value, atom in zip(operands, eqn.invars, strict=True):
            for each in () if value is None else value.each():
                self.elsewhere(each, eqn, atom.aval.shape)
        return [None] * len(eqn.outvars)

    def product(self, value: _Tracked, inputs: frozenset[int], outputs: frozenset[int]) -> None:
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

    def elsewhere(self, value: _Tracked, eqn: Any, shape: tuple[int, ...]) -> None:
        """Note a use that is no product: a lookup has its roles, anything else is told."""
        self.met.add(value.path)
        kept = value.at(*range(len(value.dims))) - value.stack - value.chosen
        if value.chosen - value.stack and kept:
            self.product(value, value.chosen - value.stack, kept)
        elif len(kept & value.at(*_wide(shape))) >= 2 and not _is_bias(value, eqn, shape):
            self.other.setdefault(
                value.path,
                f"`{eqn.primitive.name}` at {_compat.source(eqn)} computes with it, "
                "and that is no product",
            )


def _wide(shape: tuple[int, ...]) -> list[int]:
    return [dim for dim, size in enumerate(shape) if size != 1]


def _is_bias(value: _Tracked, eqn: Any, shape: tuple[int, ...]) -> bool:
    """Whether the value is added to something larger; a multiplied one may be a product."""
    return eqn.primitive.name != "mul" and (value.spread or _widens(shape, eqn))


def _widens(shape: tuple[int, ...], eqn: Any) -> bool:
    """Whether an operation broadcasts this operand, as a bias is over the batch."""
    if eqn.primitive.name in ("concatenate", "stack", "pad"):  # beside other values, whole
        return False
    return any(math.prod(out.aval.shape) > math.prod(shape) for out in eqn.outvars)


# Movements: (equation, operands) -> results, or None where the value is lost.


def _moved(change: Callable[[Any, _Tracked], _Tracked | None]):
    def move(eqn, operands):
        value = operands[0]
        if value is None or any(operands[1:]):
            return None
        result = value.map(lambda each: change(eqn, each))
        return None if result is None else [result] * len(eqn.outvars)

    return move


def _transpose(eqn, value):
    return value.replace(dims=tuple(value.dims[dim] for dim in eqn.params["permutation"]))


def _squeeze(eqn, value):
    gone = {dim % len(value.dims) for dim in eqn.params["dimensions"]}
    return value.replace(dims=tuple(d for dim, d in enumerate(value.dims) if dim not in gone))


def _broadcast(eqn, value):
    dims: list[tuple[int, ...]] = [()] * len(eqn.params["shape"])
    for old, new in enumerate(eqn.params["broadcast_dimensions"]):
        dims[new] = value.dims[old]
    spread = math.prod(eqn.params["shape"]) > math.prod(eqn.invars[0].aval.shape)
    return value.replace(dims=tuple(dims), spread=value.spread or spread)


def _reshape(eqn, value):
    shape = eqn.invars[0].aval.shape
    dims: list[tuple[int, ...]] = [()] * len(eqn.params["new_sizes"])
    try:
        groups = regroup(shape, eqn.params["new_sizes"])
    except Opaque:
        return None
    for old, new in groups:
        together = tuple(source for dim in old for source in value.dims[dim])
        for dim in new:
            dims[dim] = together
    return value.replace(dims=tuple(dims))


def _same(eqn, value):
    return value


def _narrowed(eqn, value):
    """A slice: a dimension narrowed to 1 by an index was chosen."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    chosen = [dim for dim in range(len(before)) if before[dim] != after[dim] == 1]
    lost = frozenset(source for dim in chosen for source in value.dims[dim])
    dims = tuple(() if dim in chosen else sources for dim, sources in enumerate(value.dims))
    return value.replace(dims=dims, chosen=value.chosen | lost)


def _indexed(eqn, value):
    """A gather of whole slices: the indexed dimensions were chosen."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    if any(size != 1 for dim, size in enumerate(sizes) if dim in gone):
        return None
    kept = [dim for dim in range(len(value.dims)) if dim not in gone]
    shape = eqn.invars[0].aval.shape
    chosen = {dim for dim in kept if sizes[dim] == 1 != shape[dim]}  # one slice, not yet squeezed
    dims: list[tuple[int, ...]] = [()] * eqn.outvars[0].aval.ndim
    for new, old in zip(numbers.offset_dims, kept, strict=True):
        dims[new] = () if old in chosen else value.dims[old]
    return value.replace(dims=tuple(dims), chosen=value.chosen | value.at(*gone, *chosen))


def _scalar_product(eqn, operands):
    others = [a for a, value in zip(eqn.invars, operands, strict=True) if value is None]
    if len(others) == 1 and math.prod(others[0].aval.shape) == 1:
        return [value for value in operands if value is not None]
    return None


def _first_index(change):
    """For operations whose other operands are indices."""

    def move(eqn, operands):
        value = operands[0]
        if value is None:
            return None
        result = value.map(lambda each: change(eqn, each))
        return None if result is None else [result]

    return move


def _fused(eqn, operands):
    """Weights side by side are each used as the whole is."""
    if any(value is None or value.spread or value.chosen for value in operands):
        return None
    first, *rest = (each for value in operands for each in value.each())
    return [first.replace(beside=tuple(rest))]


def _stacked(eqn, operands):
    at = eqn.params["axis"]

    def widened(value):
        return value.replace(dims=(*value.dims[:at], (), *value.dims[at:]))

    return _fused(eqn, [value and value.map(widened) for value in operands])


_UNMOVED = (
    "convert_element_type",
    "copy",
    "copy_p",
    "stop_gradient",
    "neg",
    "name",
    "reduce_precision",
    "sharding_constraint",
    "mesh_cast",
    "reshard",
    "pvary",
    "pcast",
    "all_gather",
    "rev",
    "slice",
    "split",
)
_MOVES: dict[str, Callable[[Any, list[_Tracked | None]], list[_Tracked | None] | None]] = {
    **{name: _moved(_same) for name in _UNMOVED},
    "slice": _moved(_narrowed),
    "transpose": _moved(_transpose),
    "squeeze": _moved(_squeeze),
    "broadcast_in_dim": _moved(_broadcast),
    "reshape": _moved(_reshape),
    "dynamic_slice": _first_index(_narrowed),
    "gather": _first_index(_indexed),
    "concatenate": _fused,
    "stack": _stacked,
    "mul": _scalar_product,
    "div": _scalar_product,
    "optimization_barrier": lambda eqn, operands: list(operands),
    "device_put": lambda eqn, operands: list(operands),
}


# Roles: (equation, which operand, its value) -> (inputs, outputs)


def _dot_roles(eqn, side, value):
    contracted, batch = eqn.params["dimension_numbers"]
    kept = set(range(len(value.dims))) - {*contracted[side], *batch[side]}
    return value.at(*contracted[side]), value.at(*kept)


def _ragged_roles(eqn, side, value):
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    groups = numbers.rhs_group_dimensions if side == 1 else ()
    kept = set(range(len(value.dims))) - {*contracted[side], *batch[side], *groups}
    return value.at(*contracted[side]), value.at(*kept)


def _conv_roles(eqn, side, value):
    if side == 0:
        return frozenset(), value.at(*range(len(value.dims)))
    output, *inputs = eqn.params["dimension_numbers"].rhs_spec
    return value.at(*inputs), value.at(output)


_ROLES = {
    "dot_general": _dot_roles,
    "ragged_dot_general": _ragged_roles,
    "conv_general_dilated": _conv_roles,
}


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
