"""Weights put side by side: each keeps its own low-rank delta, in a window of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jlora._lift._decline import Decline
from jlora._lift._movement import relabel, unmoved, with_new
from jlora._lift._operands import bases, gains, refuse_form
from jlora._lift._term import Term
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Weight, put_together
from jlora._lowrank import Factor


@rule("stack", reads=("axis",))
def stack(walk: Walk, eqn: Any, *parts: Any) -> list[Any]:
    """Weights along a new dimension: as if each had it with size 1 and they were concatenated."""
    dim = eqn.params["axis"]
    movement = with_new(dim, len(eqn.outvars[0].aval.shape) - 1)
    w = walk.run.join(walk, eqn, bases(parts), [movement] * len(parts), None)

    def widened(part: Any) -> Any:
        if not isinstance(part, Weight):
            return part
        return part.moved(part.w, movement, lambda factor: relabel(factor, movement.new))

    sizes = [1] * len(parts)
    return [_side_by_side(w, [widened(part) for part in parts], dim, sizes)]


@rule("concatenate", reads=("dimension",))
def concatenate(walk: Walk, eqn: Any, *parts: Any) -> list[Any]:
    """Weights side by side along a dimension that they have."""
    dim, w_shape = eqn.params["dimension"], eqn.outvars[0].aval.shape
    w = walk.run.join(walk, eqn, bases(parts), [unmoved(len(w_shape))] * len(parts), None)
    return [_side_by_side(w, list(parts), dim, [part.shape[dim] for part in parts])]


def _side_by_side(w: Any, parts: list[Any], dim: int, sizes: Sequence[int]) -> Weight:
    """Each part's delta in its own window of w, or one delta where the parts are a stack."""
    refuse_form(*parts)
    weights = [part for part in parts if isinstance(part, Weight)]
    if any(part.rows for part in weights):
        raise Decline("rows are concatenated")  # activations from here on
    gain = _gains(parts, dim, sizes, w.shape)
    if one := _one_term(parts, dim, sizes):
        return put_together(w, one, gain)
    terms: list[Term] = []
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        if isinstance(part, Weight):
            for term in part.terms:
                own = [window for window in term.window if window[0] == dim]
                first, width = (own[0][1], own[0][2]) if own else (0, size)
                others = [window for window in term.window if window[0] != dim]
                terms.append(
                    term.map(lambda factor: factor, (*others, (dim, start + first, width)))
                )
        start += size
    return put_together(w, terms, gain)


def _gains(
    parts: list[Any], dim: int, sizes: Sequence[int], shape: tuple[int, ...]
) -> Factor | None:
    """The gains of all parts one after the other; 1 for a part without."""
    if (together := gains(parts, [dim])) is None:
        return None
    order, arrays = together
    arrays = [
        jnp.broadcast_to(array, [size if d == dim else shape[d] for d in order])
        for array, size in zip(arrays, sizes, strict=True)
    ]
    joined = lax.concatenate(arrays, order.index(dim))
    return Factor(joined, order)


def _one_term(parts: list[Any], dim: int, sizes: Sequence[int]) -> tuple[Term, ...] | None:
    """One delta for all parts, or None where each needs its own.

    For parts of one weight that share a factor (``jnp.roll``), and for parts that lie along a stack
    dimension (``jnp.stack`` of layers).
    """
    if not all(isinstance(part, Weight) and len(part.terms) == 1 for part in parts):
        return None
    terms = [part.terms[0] for part in parts]
    first = terms[0]
    if any(window[0] == dim for term in terms for window in term.window):
        return None
    if any(term.present is not None for term in terms):
        return None
    shape = (first.rank, first.window, set(first.a.dims), set(first.b.dims))
    if any((t.rank, t.window, set(t.a.dims), set(t.b.dims)) != shape for t in terms):
        return None
    covered = first.covers(dim)
    shared = first.b if covered == (True, False) else first.a
    if covered in ((True, False), (False, True)):
        others = [term.b if covered[0] else term.a for term in terms]
        if any(
            other.array is not shared.array
            or not _same(term.scaling, first.scaling)
            or not _same(term.gain, first.gain)
            or term.filter is not first.filter
            for other, term in zip(others, terms, strict=True)
        ):
            return None
        if first.gain is not None and dim in first.gain.dims:
            return None
        moving = _joined([term.a if covered[0] else term.b for term in terms], dim)
        changed = {"a": moving, "b": shared} if covered[0] else {"a": shared, "b": moving}
        return (dataclasses.replace(first, **changed),)
    if covered == (False, False) and any(size != 1 for size in sizes):
        return None
    filter_ = None
    if any(term.filter is not None for term in terms):
        filters = [term.filter for term in terms]
        filter_ = None if None in filters else filters[0].stacked(filters[1:], dim)  # type: ignore
        if filter_ is None or any(size != 1 for size in sizes):
            return None
    terms = [term.two_factors() for term in terms]
    if any({*t.a.dims} != {*first.a.dims} or {*t.b.dims} != {*first.b.dims} for t in terms):
        return None  # a gain over both
    a, b = _joined([t.a for t in terms], dim), _joined([t.scaled_b for t in terms], dim)
    origins = tuple(origin for term in terms for origin in term.origins)
    return (Term(a, b, origins=origins, window=first.window, filter=filter_),)


def _same(one: Factor | None, other: Factor | None) -> bool:
    """Whether both are of one array, or neither is there."""
    if one is None or other is None:
        return one is other
    return one.array is other.array and one.dims == other.dims


def _joined(factors: list[Factor], dim: int) -> Factor:
    """The factors one after the other along a dimension, which is new to those without it."""
    dims = (dim, *(d for d in factors[0].dims if d != dim))
    arrays = []
    for factor in factors:
        array = factor.array if dim in factor.dims else jnp.expand_dims(factor.array, 0)
        have = factor.dims if dim in factor.dims else (dim, *factor.dims)
        arrays.append(lax.transpose(array, tuple(have.index(d) for d in dims)))
    return Factor(lax.concatenate(arrays, 0), dims)
