"""Arithmetic that is linear in the weight: sums, scalings, choices, pairs of real numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jlora._lift._decline import Decline
from jlora._lift._movement import Movement, relabel, unmoved
from jlora._lift._operands import bases, gains, refuse_form, refuse_gain
from jlora._lift._sums import Squares
from jlora._lift._term import Term
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Weight, put_together
from jlora._lowrank import Factor, promoted


@rule("neg")
def neg(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    refuse_form(value)
    w = walk.run.join(walk, eqn, [value.base], [unmoved(value.ndim)], frozenset())
    return [value.replace(w=w, cast=None).map_terms(lambda term: term.on_a(jnp.negative))]


@rule("add", "add_any", "sub", carries=("out_dtype",))
def add(walk: Walk, eqn: Any, x: Any, y: Any) -> list[Any]:
    """W + V keeps W's terms, and V's if it has some."""
    weights = [value for value in (x, y) if isinstance(value, Weight)]
    refuse_form(x, y)
    refuse_gain(x, y)
    if any(value.rows for value in weights):
        raise Decline("rows are added")  # an activation from here on
    shape = eqn.outvars[0].aval.shape
    if any(value.shape != shape for value in weights):
        raise Decline("a sum that broadcasts the weight")
    w = walk.run.join(walk, eqn, bases((x, y)), [unmoved(len(shape))] * 2, None)
    x_terms = x.terms if isinstance(x, Weight) else ()
    y_terms = y.terms if isinstance(y, Weight) else ()
    if eqn.primitive.name == "sub":
        y_terms = tuple(term.on_a(jnp.negative) for term in y_terms)
    return [put_together(w, (*x_terms, *y_terms))]


@rule("mul", carries=("out_dtype",))
def mul(walk: Walk, eqn: Any, x: Any, y: Any) -> list[Any]:
    if isinstance(x, Weight) and isinstance(y, Weight):
        if x is y:
            return [_squared(x)]
        raise Decline("a product of two adapted weights, element by element")
    return (
        _scale(walk, eqn, x, y) if isinstance(x, Weight) else _scale(walk, eqn, y, x, first=False)
    )


@rule("square")
def square(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    return [_squared(value)]


@rule("integer_pow", reads=("y",))
def integer_pow(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    if eqn.params["y"] == 1:
        return [value]
    if eqn.params["y"] != 2:
        raise Decline("a power is not linear")
    return [_squared(value)]


def _squared(value: Weight) -> Squares:
    refuse_form(value)
    if value.rows:
        raise Decline("rows are squared")  # activations from here on
    return Squares(value)


@rule("div")
def div(walk: Walk, eqn: Any, x: Any, y: Any) -> list[Any]:
    if isinstance(y, Weight):
        raise Decline("a quotient is not linear in the weight below")
    return _scale(walk, eqn, x, y)


def _scale(walk: Walk, eqn: Any, value: Weight, by: Any, *, first: bool = True) -> list[Any]:
    """By a scalar, or by an array over dimensions that one factor has alone: that factor takes it.

    A scale for each output channel is one of B's, so diag(s) W + diag(s) A B keeps its rank.
    """
    refuse_form(value)
    shape = np.shape(by)
    if shape and eqn.outvars[0].aval.shape != value.shape:
        raise Decline("a product that broadcasts the weight")
    varies = _varies(walk, eqn.invars[1 if first else 0], shape)
    operands = [value.base, by] if first else [by, value.base]
    w = walk.run.join(walk, eqn, operands, [unmoved(value.ndim)] * 2, varies)
    divides = eqn.primitive.name == "div"

    def scaled(factor: Factor) -> Factor:
        dtype = factor.array.dtype
        if jnp.iscomplexobj(by):
            dtype = promoted(dtype, jnp.complex64)
        array, along = factor.array.astype(dtype), _over(by, varies, factor).astype(dtype)
        return Factor(array / along if divides else array * along, factor.dims)

    scaled_terms = [_on_one(term, varies, scaled) for term in value.terms]
    return [put_together(w, scaled_terms, value.gain).replace(rows=value.rows)]


def _varies(walk: Walk, atom: Any, shape: tuple[int, ...]) -> frozenset[int]:
    """The dimensions along which an operand may vary."""
    wide = frozenset(dim for dim, size in enumerate(shape) if size != 1)
    return wide - walk.repeats(atom) if len(wide) > 0 else wide


def _over(array: Any, varies: frozenset[int], factor: Factor) -> Any:
    """An array that varies along some dimensions, over those of a factor, of size 1 elsewhere."""
    array = jnp.asarray(array)
    for dim in range(array.ndim):
        if dim not in varies and array.shape[dim] != 1:
            array = lax.slice_in_dim(array, 0, 1, axis=dim)  # it repeats
    dims = [dim for dim in factor.dims if dim in varies]
    array = jnp.squeeze(array, tuple(dim for dim in range(array.ndim) if dim not in varies))
    array = lax.transpose(array, tuple(sorted(varies).index(dim) for dim in dims))
    sizes = [n if d in varies else 1 for d, n in zip(factor.dims, factor.array.shape, strict=True)]
    return array.reshape(sizes)


def _on_one(term: Term, varies: frozenset[int], change: Callable[[Factor], Factor]) -> Term:
    """The term with an elementwise change over some dimensions made on the factor with them."""
    if any(dim in varies for dim, _, _ in term.window):
        raise Decline("an elementwise operation along the dimension of an earlier concatenation")
    if varies <= set(term.a.dims):
        return dataclasses.replace(term, a=change(term.a))
    if varies <= set(term.b.dims):
        return dataclasses.replace(term, b=change(term.b))
    raise Decline("an elementwise operation over inputs and outputs is not of low rank")


@rule("reduce_sum", reads=("axes",), carries=("out_sharding",))
def reduce_sum(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """A sum over rows is one over A's rows, a sum over columns one over B's columns."""
    axes = eqn.params["axes"]
    refuse_form(value)
    refuse_gain(value)
    value = value.map_terms(lambda term: _in_factors(term, axes))
    if any(term.covers(dim) not in _ONE_SIDED for term in value.terms for dim in axes):
        raise Decline("a sum over a stack of adapters adds their ranks")
    value = value.filled(axes).replace(w=value.base, cast=None)
    kept = [dim for dim in range(value.ndim) if dim not in axes]
    movement = Movement(tuple((dim,) for dim in kept), summed=frozenset(axes))

    def summed(factor: Factor) -> Factor:
        gone = tuple(axis for axis, dim in enumerate(factor.dims) if dim in axes)
        rest = tuple(dim for dim in factor.dims if dim not in axes)
        return relabel(Factor(factor.array.sum(gone), rest), movement.new)

    return [walk.move(eqn, value, movement, summed).replace(rows=True)]


def _in_factors(term: Term, axes: Sequence[int]) -> Term:
    """The term with A and B alone along these dimensions: its gain and scaling there are theirs."""
    if term.gain is not None and set(term.gain.dims) & set(axes):
        term = term.two_factors()
    if term.scaling is not None and set(term.scaling.dims) & set(axes):
        term = dataclasses.replace(term, b=term.scaled_b, scaling=None)
    return term


_ONE_SIDED = ((True, False), (False, True))


@rule("select_n")
def select_n(walk: Walk, eqn: Any, which: Any, *cases: Any) -> list[Any]:
    """A choice between weights and arrays: where a weight is not chosen its terms are zero.

    The choice may differ along dimensions that one factor has alone, as a mask of rows does.
    """
    refuse_form(*cases)
    if isinstance(which, Weight):
        raise Decline("the choice is itself adapted")
    weights = [case for case in cases if isinstance(case, Weight)]
    if any(case.rows for case in weights):
        raise Decline("rows are chosen")  # an activation from here on
    varies = _varies(walk, eqn.invars[0], np.shape(which))
    ndim = weights[0].ndim
    w = walk.run.join(walk, eqn, [which, *bases(cases)], [unmoved(ndim)] * (1 + len(cases)), None)
    terms = []
    for at, case in enumerate(cases):
        if not isinstance(case, Weight):
            continue

        def where_chosen(factor: Factor, at: int = at) -> Factor:
            chosen = _over(which, varies, factor).astype(jnp.int32) == at
            zero = jnp.zeros((), factor.array.dtype)
            return Factor(jnp.where(chosen, factor.array, zero), factor.dims)

        terms += [_on_one(term.filled(varies, case.shape), varies, where_chosen)
                  for term in case.terms]  # fmt: skip
    gain = _chosen_gain(which, varies, cases)
    return [put_together(w, terms, gain)]


def _chosen_gain(which: Any, varies: frozenset[int], cases: tuple[Any, ...]) -> Factor | None:
    """The gain of what is chosen; 1 for a case without."""
    if (together := gains(cases)) is None:
        return None
    order, arrays = together
    if not varies <= set(order):
        raise Decline("the weight's magnitudes can't be kept apart through it")
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    over = Factor(jnp.zeros(shape), order)
    chosen = jnp.broadcast_to(_over(which, varies, over).astype(jnp.int32), shape)
    return Factor(lax.select_n(chosen, *(jnp.broadcast_to(a, shape) for a in arrays)), order)


@rule("complex")
def complex_(walk: Walk, eqn: Any, re: Any, im: Any) -> list[Any]:
    """Real and imaginary part: the terms of both, those of the imaginary one times i."""
    refuse_form(re, im)
    refuse_gain(re, im)
    weights = [value for value in (re, im) if isinstance(value, Weight)]
    if any(value.rows for value in weights):
        raise Decline("rows are made complex")
    dtype = eqn.outvars[0].aval.dtype
    w = walk.run.join(walk, eqn, bases((re, im)), [unmoved(weights[0].ndim)] * 2, None)
    turn = {0: 1, 1: 1j}
    terms = [
        term.on_a(lambda array, at=at: array.astype(dtype) * jnp.asarray(turn[at], dtype))
        for at, value in enumerate((re, im))
        if isinstance(value, Weight)
        for term in value.terms
    ]
    return [put_together(w, terms)]
