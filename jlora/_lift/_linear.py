"""Arithmetic that is linear in the weight: sums, scalings, choices between whole weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jlora._lift import _compat
from jlora._lift._adapted import Adapted, Factor, Opaque, Term, refuse_gain
from jlora._lift._movement import bases, move, refuse_windows, relabel
from jlora._lift._walk import Walk, rule


@rule("neg")
def neg(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    [w] = _compat.bind(eqn, [value.base])
    return [
        value.replace(w=w, cast=None, terms=tuple(term.on_a(jnp.negative) for term in value.terms))
    ]


@rule("add", "add_any", "sub", carries=("out_dtype",))
def add(walk: Walk, eqn: Any, x: Any, y: Any) -> list[Any]:
    """W + V keeps W's terms, and V's if it has some."""
    adapted = [value for value in (x, y) if isinstance(value, Adapted)]
    refuse_gain(x, y)
    if any(value.activation for value in adapted):
        raise Opaque("rows are added")  # an activation from here on
    if any(value.shape != eqn.outvars[0].aval.shape for value in adapted):
        raise Opaque("a sum that broadcasts the weight")
    [w] = _compat.bind(eqn, bases((x, y)))
    x_terms = x.terms if isinstance(x, Adapted) else ()
    y_terms = y.terms if isinstance(y, Adapted) else ()
    if eqn.primitive.name == "sub":
        y_terms = tuple(term.on_a(jnp.negative) for term in y_terms)
    return [adapted[0].replace(w=w, cast=None, terms=(*x_terms, *y_terms))]


@rule("mul", carries=("out_dtype",))
def mul(walk: Walk, eqn: Any, x: Any, y: Any) -> list[Any]:
    if isinstance(x, Adapted) and isinstance(y, Adapted):
        raise Opaque("a product of two adapted weights, element by element")
    return _scale(eqn, x, y) if isinstance(x, Adapted) else _scale(eqn, y, x, swapped=True)


@rule("div")
def div(walk: Walk, eqn: Any, x: Any, y: Any) -> list[Any]:
    if isinstance(y, Adapted):
        raise Opaque("a quotient is not linear in the weight below")
    return _scale(eqn, x, y)


def _scale(eqn: Any, value: Adapted, by: Any, *, swapped: bool = False) -> list[Any]:
    """By a scalar, or by an array over dimensions that one factor has alone: that factor takes it.

    A scale for each output channel is one of B's, so diag(s) W + diag(s) A B keeps its rank.
    """
    shape = jnp.shape(by)
    if shape and eqn.outvars[0].aval.shape != value.shape:
        raise Opaque("a product that broadcasts the weight")
    varies = {dim for dim, size in enumerate(shape) if size != 1}
    [w] = _compat.bind(eqn, [by, value.base] if swapped else [value.base, by])
    divides = eqn.primitive.name == "div"

    def scaled(factor: Factor) -> Factor:
        dims = [dim for dim in factor.dims if dim in varies]
        squeezed = jnp.squeeze(by, tuple(dim for dim in range(len(shape)) if dim not in varies))
        squeezed = lax.transpose(squeezed, tuple(sorted(varies).index(dim) for dim in dims))
        sizes = [
            n if d in varies else 1 for d, n in zip(factor.dims, factor.array.shape, strict=True)
        ]
        squeezed = squeezed.reshape(sizes).astype(factor.array.dtype)
        return Factor(factor.array / squeezed if divides else factor.array * squeezed, factor.dims)

    def term(term: Term) -> Term:
        if any(dim in varies for dim, _, _ in term.window):
            raise Opaque("an elementwise scale along the dimension of an earlier concatenation")
        if varies <= set(term.a.dims):
            return dataclasses.replace(term, a=scaled(term.a))
        if varies <= set(term.b.dims):
            return dataclasses.replace(term, b=scaled(term.b))
        raise Opaque("an elementwise product over inputs and outputs is not of low rank")

    return [value.replace(w=w, cast=None, terms=tuple(term(each) for each in value.terms))]


@rule("reduce_sum", reads=("axes",), carries=("out_sharding",))
def reduce_sum(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    """A sum over rows is one over A's rows, a sum over columns one over B's columns."""
    axes = eqn.params["axes"]
    refuse_gain(value)
    if any(term.covers(dim) not in _ONE_SIDED for term in value.terms for dim in axes):
        raise Opaque("a sum over a stack of adapters adds their ranks")
    refuse_windows(value, axes, "a sum")
    new = {old: at for at, old in enumerate(d for d in range(value.ndim) if d not in axes)}

    def summed(factor: Factor) -> Factor:
        gone = tuple(axis for axis, dim in enumerate(factor.dims) if dim in axes)
        rest = tuple(dim for dim in factor.dims if dim not in axes)
        return relabel(Factor(factor.array.sum(gone), rest), new)

    [result] = move(eqn, value.replace(w=value.base, cast=None), factor=summed, new=new)
    return [result.replace(activation=True)]


_ONE_SIDED = ((True, False), (False, True))


@rule("select_n")
def select_n(walk: Walk, eqn: Any, which: Any, *cases: Any) -> list[Any]:
    """One of several whole weights: the terms of the others are multiplied by zero."""
    refuse_gain(*cases)
    if isinstance(which, Adapted) or np.ndim(which) != 0:
        raise Opaque("a choice element by element")
    adapted = [case for case in cases if isinstance(case, Adapted)]
    if any(case.activation for case in adapted):
        raise Opaque("rows are chosen")  # an activation from here on
    [w] = _compat.bind(eqn, [which, *bases(cases)])
    number = jnp.asarray(which, jnp.int32)  # a literal, perhaps
    terms = [
        term.on_a(lambda array, at=at: jnp.where(number == at, array, 0))
        for at, case in enumerate(cases)
        if isinstance(case, Adapted)
        for term in case.terms
    ]
    return [adapted[0].replace(w=w, cast=None, terms=tuple(terms))]
