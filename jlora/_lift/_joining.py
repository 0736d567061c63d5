"""Weights put side by side: each keeps its own low-rank delta, in a window of the whole."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jlora._lift import _compat
from jlora._lift._adapted import RANK, Adapted, Factor, Opaque, Term
from jlora._lift._movement import bases, refuse_windows, relabel
from jlora._lift._walk import Walk, rule
from jlora._lowrank import spread


@rule("stack", reads=("axis",))
def stack(walk: Walk, eqn: Any, *parts: Any) -> list[Any]:
    """Weights along a new dimension: as if each had it with size 1 and they were concatenated."""
    dim = eqn.params["axis"]

    def widened(part: Any) -> Any:
        if not isinstance(part, Adapted):
            return jnp.expand_dims(part, dim)
        new = {old: old + (old >= dim) for old in range(part.ndim)}
        return part.moved(
            jnp.expand_dims(part.w, dim), lambda factor: relabel(factor, new), new.__getitem__
        )

    [w] = _compat.bind(eqn, bases(parts))
    return [_side_by_side(w, [widened(part) for part in parts], dim)]


@rule("concatenate", reads=("dimension",))
def concatenate(walk: Walk, eqn: Any, *parts: Any) -> list[Any]:
    """Weights side by side along a dimension that they have."""
    [w] = _compat.bind(eqn, bases(parts))
    return [_side_by_side(w, list(parts), eqn.params["dimension"])]


def _side_by_side(w: Any, parts: list[Any], dim: int) -> Adapted:
    """Each part's delta in its own window of w, or one delta where the parts are a stack."""
    adapted = [part for part in parts if isinstance(part, Adapted)]
    if any(part.activation for part in adapted):
        raise Opaque("rows are concatenated")  # activations from here on
    for part in adapted:
        refuse_windows(part, [dim], "a concatenation")
    gain = _gains(parts, dim)
    if stacked := _stacked(parts, dim):
        return adapted[0].replace(w=w, terms=stacked, cast=None, gain=gain)
    terms: list[Term] = []
    start = 0
    for part in parts:
        size = part.shape[dim]
        if isinstance(part, Adapted):
            window = (dim, start, size)
            terms += [
                term.map(lambda factor: factor, (*term.window, window)) for term in part.terms
            ]
        start += size
    return adapted[0].replace(w=w, terms=tuple(terms), cast=None, gain=gain)


def _gains(parts: list[Any], dim: int) -> Factor | None:
    """The gains of all parts one after the other; 1 for a part without."""
    gains = [part.gain if isinstance(part, Adapted) else None for part in parts]
    dims = {d for gain in gains if gain is not None for d in gain.dims} - {RANK}
    if not dims:
        return None
    order = sorted(dims | {dim})
    arrays = []
    for part, gain in zip(parts, gains, strict=True):
        array = jnp.float32(1) if gain is None else spread(gain, order)
        arrays.append(jnp.broadcast_to(array, [part.shape[d] for d in order]))
    joined = lax.concatenate(arrays, order.index(dim))
    return Factor(joined[..., None], (*order, RANK))


def _stacked(parts: list[Any], dim: int) -> tuple[Term, ...] | None:
    """One delta for parts that lie along a stack dimension (``jnp.stack`` of layers), or None."""
    if not all(isinstance(part, Adapted) and len(part.terms) == 1 for part in parts):
        return None
    terms = [part.terms[0] for part in parts]
    first = terms[0]
    layout = (first.rank, first.window, set(first.a.dims), set(first.b.dims))
    if any((t.rank, t.window, set(t.a.dims), set(t.b.dims)) != layout for t in terms):
        return None
    covered = first.covers(dim)
    if covered not in ((True, True), (False, False)):
        return None
    if covered == (False, False) and any(part.shape[dim] != 1 for part in parts):
        return None

    def joined(factors: list[Factor]) -> Factor:
        dims = (dim, *(d for d in factors[0].dims if d != dim))
        arrays = []
        for factor in factors:
            array = factor.array if dim in factor.dims else jnp.expand_dims(factor.array, 0)
            have = factor.dims if dim in factor.dims else (dim, *factor.dims)
            arrays.append(lax.transpose(array, tuple(have.index(d) for d in dims)))
        return Factor(lax.concatenate(arrays, 0), dims)

    a, b = joined([t.a for t in terms]), joined([t.scaled_b for t in terms])
    return (Term(a, b, window=first.window),)
