"""Parts of a weight: slices, splits, lookups of rows, layers of a stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._lift._base import Base
from jlora._lift._decline import Decline
from jlora._lift._movement import Movement, relabel, unmoved, without
from jlora._lift._term import Term
from jlora._lift._walk import Walk, rule
from jlora._lift._watched import is_rows
from jlora._lift._weight import Weight
from jlora._lowrank import RANK, Factor, along

Ranges = dict[int, tuple[int, int, int]]  # from a dimension to start, limit and stride


@rule("slice", reads=("start_indices", "limit_indices", "strides"))
def slice_(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * value.ndim
    value = value.filled(dim for dim in range(value.ndim) if strides[dim] != 1)
    ranges = {dim: (starts[dim], limits[dim], strides[dim]) for dim in range(value.ndim)}
    movement = _narrowing(value, eqn.outvars[0].aval.shape)
    w = walk.run.move(walk, eqn, [value.w], movement, lambda factor: _part(factor, ranges))
    return [_chosen(_cut(value, w, ranges), value, movement)]


def _cut(value: Weight, w: Any, ranges: Ranges) -> Weight:
    """The slice of a weight, ``w`` being that of W."""
    terms = (_cut_term(term, ranges) for term in value.terms)
    gain = None if value.gain is None else _part(value.gain, ranges)
    terms = tuple(term for term in terms if term is not None)
    return value.replace(w=w, terms=terms, gain=gain)


def _part(factor: Factor, ranges: Ranges) -> Factor:
    """The slice of a factor on the dimensions that it has."""
    bounds = [
        ranges.get(dim, (0, size, 1))
        for dim, size in zip(factor.dims, factor.array.shape, strict=True)
    ]
    if all(bound == (0, n, 1) for bound, n in zip(bounds, factor.array.shape, strict=True)):
        return factor
    return Factor(lax.slice(factor.array, *zip(*bounds, strict=True)), factor.dims)


def _cut_term(term: Term, ranges: Ranges) -> Term | None:
    """What of a term falls into a slice; None if nothing."""
    window: list[tuple[int, int, int]] = []
    own = dict(ranges)  # in the factors' own coordinates
    for dim, start, size in term.window:
        if dim not in ranges:
            window.append((dim, start, size))
            continue
        low, high, _ = ranges[dim]
        first, last = max(start, low), min(start + size, high)
        if first >= last:
            return None
        own[dim] = (first - start, last - start, 1)
        if (first, last) != (low, high):
            window.append((dim, first - low, last - first))
    return term.map(lambda factor: _part(factor, own), window)


@rule("split", reads=("sizes", "axis"))
def split(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """The parts of a fused weight (query, key, value along the outputs)."""
    axis, start, results = eqn.params["axis"], 0, []
    ws = walk.run.parts(walk, eqn, value.w, unmoved(value.ndim, parted=frozenset([axis])))
    for w, size in zip(ws, eqn.params["sizes"], strict=True):
        results.append(_cut(value, w, {axis: (start, start + int(size), 1)}))
        start += int(size)
    return results


@rule("unstack", reads=("axis",))
def unstack(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """Each place along a dimension, which is gone then."""
    axis = eqn.params["axis"] % value.ndim
    value = value.filled([axis])
    only = frozenset([axis])
    movement = without(only, value.ndim, parted=only, chosen=only)
    ws = walk.run.parts(walk, eqn, value.w, movement)
    results = []
    for at, w in enumerate(ws):

        def one(factor: Factor, at: int = at) -> Factor:
            if axis not in factor.dims:
                return relabel(factor, movement.new)
            part = _part(factor, {axis: (at, at + 1, 1)})
            own = factor.dims.index(axis)
            dims = tuple(dim for dim in factor.dims if dim != axis)
            return relabel(Factor(lax.squeeze(part.array, (own,)), dims), movement.new)

        results.append(_chosen(value.moved(w, movement, one), value, movement))
    return results


@rule("dynamic_slice", reads=("slice_sizes",))
def dynamic_slice(walk: Walk, eqn: Any, value: Any, *starts: Any) -> list[Any]:
    if any(isinstance(start, Weight) for start in starts):
        raise Decline("an index that is itself adapted")
    sizes = eqn.params["slice_sizes"]
    movement = _narrowing(value, sizes)
    value = value.filled(movement.parted)

    def part(factor: Factor) -> Factor:
        if movement.parted.isdisjoint(factor.dims):
            return factor
        own = [
            (starts[dim], sizes[dim])
            if dim in movement.parted
            else (jnp.zeros_like(starts[0]), size)
            for dim, size in zip(factor.dims, factor.array.shape, strict=True)
        ]
        where, whole = zip(*own, strict=True)
        # what was below zero was counted from the end before: it is clipped from here on
        sliced = lax.dynamic_slice(factor.array, where, whole, allow_negative_indices=False)
        return Factor(sliced, factor.dims)

    moved = walk.move(eqn, value, movement, part, *starts).replace(parts=None)
    return [_chosen(moved, value, movement)]


@rule(
    "gather",
    reads=("dimension_numbers", "slice_sizes", "mode", "fill_value"),
    carries=("indices_are_sorted", "unique_indices"),
)
def gather(walk: Walk, eqn: Any, value: Any, indices: Any) -> list[Any]:
    """Whole slices chosen along one dimension, as an embedding lookup or ``W[layers]`` does."""
    if isinstance(indices, Weight):
        raise Decline("an index that is itself adapted")
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    at, column = _indexed(eqn, value)
    others = [dim for dim in range(value.ndim) if dim != at]
    if (
        at is None
        or {*numbers.collapsed_slice_dims} - {at}
        or numbers.operand_batching_dims
        or sizes[at] != 1
        or any(sizes[dim] != value.shape[dim] for dim in others)
    ):
        raise Decline("a gather that is no choice of whole slices along one dimension")
    value = value.filled([at])
    ndim = len(eqn.outvars[0].aval.shape)
    index_dims = [dim for dim in range(ndim) if dim not in numbers.offset_dims]
    kept = [dim for dim in range(value.ndim) if dim not in numbers.collapsed_slice_dims]
    sources: list[tuple[int, ...]] = [()] * ndim
    for old, new in zip(kept, numbers.offset_dims, strict=True):
        sources[new] = (old,)
    movement = Movement(tuple(sources), parted=frozenset([at]), chosen=frozenset([at]))
    mode = eqn.params["mode"]
    fills = mode == lax.GatherScatterMode.FILL_OR_DROP

    def index() -> Any:
        return lax.slice_in_dim(indices, column, column + 1, axis=indices.ndim - 1)

    def part(factor: Factor) -> Factor:
        if at not in factor.dims:
            return relabel(factor, movement.new)
        axis = factor.dims.index(at)
        rest = tuple(dim for dim in factor.dims if dim != at)
        rows = lax.gather(
            factor.array,
            index(),
            lax.GatherDimensionNumbers(
                offset_dims=tuple(range(len(index_dims), len(index_dims) + len(rest))),
                collapsed_slice_dims=(axis,),
                start_index_map=(axis,),
            ),
            tuple(1 if k == axis else size for k, size in enumerate(factor.array.shape)),
            mode=mode,
            fill_value=0 if fills else None,  # where W is filled, the delta adds nothing
        )
        dims = (*index_dims, *(RANK if dim == RANK else movement.new[dim] for dim in rest))
        return Factor(rows, dims)

    if isinstance(value.w, Base) and value.w.decodes:
        w = _decoded_rows(walk, eqn, value, at, index())
        moved = value.moved(w, movement, part)
    else:
        moved = walk.move(eqn, value, movement, part, indices)
    moved = moved.replace(parts=None)
    if fills and value.terms:
        start = lax.squeeze(index(), (indices.ndim - 1,))
        inside = Factor((start >= 0) & (start < value.shape[at]), tuple(index_dims))
        if value.gain is not None:
            return [_filled_rows(walk, eqn, _chosen(moved, value, movement, _ONE_SIDED), inside)]
        moved = moved.map_terms(lambda term: _only_present(term, inside))
    return [_chosen(moved, value, movement, _ONE_SIDED)]


_ONE_SIDED = ((True, False), (False, True))  # a table may be read by its rows as by its columns


def _decoded_rows(walk: Walk, eqn: Any, value: Weight, at: int, index: Any) -> jax.Array:
    """The chosen rows of a frozen leaf that is no array: they alone are decoded."""
    numbers, out = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    flat, mode = index.reshape(-1), eqn.params["mode"]
    fills = mode == lax.GatherScatterMode.FILL_OR_DROP
    inside = (flat >= 0) & (flat < value.shape[at])
    places = jnp.clip(flat, 0, value.shape[at] - 1)
    rows = walk.run.rows(
        walk, eqn, value.w, at, lambda array, axis: jnp.take(array, places, axis, mode="clip")
    )
    rows = jnp.moveaxis(rows, at, 0)
    if fills:
        fill = eqn.params["fill_value"]
        fill = jnp.asarray(jnp.nan if fill is None else fill, rows.dtype)
        rows = jnp.where(jnp.expand_dims(inside, tuple(range(1, rows.ndim))), rows, fill)
    kept_one = at not in numbers.collapsed_slice_dims
    rest = [size for dim, size in enumerate(value.shape) if dim != at]
    rows = rows.reshape(*index.shape[:-1], *rest)
    if kept_one:  # its dimension of size 1 among the others
        rows = jnp.expand_dims(rows, index.ndim - 1 + at)
    offsets = list(numbers.offset_dims)
    batch = [dim for dim in range(len(out.shape)) if dim not in offsets]
    order = [*batch, *offsets]
    return lax.transpose(rows, [order.index(dim) for dim in range(len(out.shape))])


def _filled_rows(walk: Walk, eqn: Any, rows: Weight, inside: Factor) -> jax.Array:
    """Rows with magnitudes, which no filled row may reach: neither its value nor a gradient."""
    if not rows.rows:
        raise Decline("a gather that fills, of a weight with magnitudes")
    present, filled = along(inside, range(rows.ndim)), rows.w
    rows = rows.replace(w=jnp.where(present, filled, jnp.zeros((), filled.dtype)))
    merged = walk.merge(rows, eqn, "")
    return jnp.where(present, merged, lax.stop_gradient(filled).astype(merged.dtype))


def _only_present(term: Term, inside: Factor) -> Term:
    """The term where an index is within bounds, and where it was before."""
    if term.present is not None:
        raise Decline("two gathers that fill, one after the other")
    return dataclasses.replace(term, present=inside)


def _indexed(eqn: Any, value: Weight) -> tuple[int | None, int]:
    """The dimension that a gather chooses along, and which column of the indices says where.

    A dynamic_slice under vmap has an index for every dimension: whole ones are clipped to 0.
    """
    dims = tuple(eqn.params["dimension_numbers"].start_index_map)
    chosen = dims
    if len(dims) > 1 and eqn.params["mode"] == lax.GatherScatterMode.CLIP:
        chosen = [dim for dim in dims if eqn.params["slice_sizes"][dim] != value.shape[dim]]
    return (chosen[0], dims.index(chosen[0])) if len(chosen) == 1 else (None, 0)


def _chosen(
    after: Weight,
    before: Weight,
    movement: Movement,
    sides: Sequence[tuple[bool, bool]] = ((True, False),),
) -> Weight:
    """The moved value: rows, if they were chosen along a dimension that A has alone."""
    looked_up = any(term.covers(dim) in sides for term in before.terms for dim in movement.parted)
    return after.replace(rows=before.rows or looked_up or is_rows(after))


def _narrowing(value: Weight, shape: tuple[int, ...]) -> Movement:
    """Dimensions of which parts are taken; of one that is narrowed to 1 a place is chosen."""
    parted = frozenset(dim for dim in range(value.ndim) if shape[dim] != value.shape[dim])
    chosen = frozenset(dim for dim in parted if shape[dim] == 1)
    return unmoved(value.ndim, parted=parted, chosen=chosen)
