"""Parts of a weight: slices, splits, lookups of rows, layers of a stack."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jlora._lift import _compat
from jlora._lift._adapted import RANK, Adapted, Factor, Opaque, Term, refuse_gain
from jlora._lift._movement import move, refuse_windows, relabel
from jlora._lift._walk import Walk, rule


@rule("slice", reads=("start_indices", "limit_indices", "strides"))
def slice_(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * value.ndim
    strided = [dim for dim in range(value.ndim) if strides[dim] != 1]
    refuse_windows(value, strided, "a strided slice")
    [w] = _compat.bind(eqn, [value.w])
    ranges = {dim: (starts[dim], limits[dim], strides[dim]) for dim in range(value.ndim)}
    return _chosen([_cut_all(value, w, ranges)], value, _narrowed(eqn, value))


def _cut_all(value: Adapted, w: Any, ranges: dict[int, tuple[int, int, int]]) -> Adapted:
    """The slice of an adapted value, ``w`` being that of W."""
    terms = (_cut(term, ranges) for term in value.terms)
    terms = tuple(term for term in terms if term is not None)
    return value.beside(lambda factor: _part(factor, ranges)).replace(w=w, terms=terms)


def _part(factor: Factor, ranges: dict[int, tuple[int, int, int]]) -> Factor:
    """The slice of a factor on the dimensions that it has."""
    bounds = [
        ranges.get(dim, (0, size, 1))
        for dim, size in zip(factor.dims, factor.array.shape, strict=True)
    ]
    if all(bound == (0, n, 1) for bound, n in zip(bounds, factor.array.shape, strict=True)):
        return factor
    return Factor(lax.slice(factor.array, *zip(*bounds, strict=True)), factor.dims)


def _cut(term: Term, ranges: dict[int, tuple[int, int, int]]) -> Term | None:
    """What of a term falls into a slice (dimension to start, limit, stride); None if nothing."""
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
def split(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    """The parts of a fused weight (query, key, value along the outputs)."""
    axis, start = eqn.params["axis"], 0
    results = []
    for w, size in zip(_compat.bind(eqn, [value.w]), eqn.params["sizes"], strict=True):
        bounds = {axis: (start, start + int(size), 1)}
        results.append(_cut_all(value, w, bounds))
        start += int(size)
    return results


@rule("dynamic_slice", reads=("slice_sizes",))
def dynamic_slice(walk: Walk, eqn: Any, value: Any, *starts: Any) -> list[Any]:
    if any(isinstance(start, Adapted) for start in starts):
        raise Opaque("an index that is itself adapted")
    sizes = eqn.params["slice_sizes"]
    narrowed = _narrowed(eqn, value)
    refuse_windows(value, narrowed, "a dynamic slice")

    def part(factor: Factor) -> Factor:
        if narrowed.isdisjoint(factor.dims):
            return factor
        own = [
            (starts[dim], sizes[dim]) if dim in narrowed else (jnp.zeros_like(starts[0]), size)
            for dim, size in zip(factor.dims, factor.array.shape, strict=True)
        ]
        return Factor(lax.dynamic_slice(factor.array, *zip(*own, strict=True)), factor.dims)

    return _chosen(move(eqn, value, *starts, factor=part), value, narrowed)


@rule(
    "gather",
    reads=("dimension_numbers", "slice_sizes", "mode", "fill_value"),
    carries=("indices_are_sorted", "unique_indices"),
)
def gather(walk: Walk, eqn: Any, value: Any, indices: Any) -> list[Any]:
    """Whole slices chosen along one dimension, as an embedding lookup or ``W[layers]`` does."""
    if isinstance(indices, Adapted):
        raise Opaque("an index that is itself adapted")
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
        raise Opaque("a gather that is no choice of whole slices along one dimension")
    refuse_windows(value, [at], "a gather")
    index_dims = [d for d in range(eqn.outvars[0].aval.ndim) if d not in numbers.offset_dims]
    kept = [dim for dim in range(value.ndim) if dim not in numbers.collapsed_slice_dims]
    new = dict(zip(kept, numbers.offset_dims, strict=True))
    index = lax.slice_in_dim(indices, column, column + 1, axis=indices.ndim - 1)
    mode = eqn.params["mode"]
    fills = mode == lax.GatherScatterMode.FILL_OR_DROP
    fill = eqn.params["fill_value"]
    if fills and not (fill is None or fill == 0 or fill != fill):
        # Any other filling than zero and NaN would be multiplied. (NaN, as flax.linen.Embed fills
        # rows that are not there, makes the gradient of the magnitudes NaN too: it says so.)
        refuse_gain(value)
    if fills and any(term.covers(at) == (False, False) for term in value.terms):
        raise Opaque("a gather that fills, along a dimension over which the weight repeats")

    def part(factor: Factor) -> Factor:
        if at not in factor.dims:
            return relabel(factor, new)
        axis = factor.dims.index(at)
        rest = tuple(dim for dim in factor.dims if dim != at)
        rows = lax.gather(
            factor.array,
            index,
            lax.GatherDimensionNumbers(
                offset_dims=tuple(range(len(index_dims), len(index_dims) + len(rest))),
                collapsed_slice_dims=(axis,),
                start_index_map=(axis,),
            ),
            tuple(1 if k == axis else size for k, size in enumerate(factor.array.shape)),
            mode=mode,
            fill_value=0 if fills else None,  # where W is filled, the delta adds nothing
        )
        return Factor(rows, (*index_dims, *(RANK if dim == RANK else new[dim] for dim in rest)))

    one_sided = ((True, False), (False, True))  # a table may be read by its rows as by its columns
    return _chosen(move(eqn, value, indices, factor=part, new=new), value, {at}, one_sided)


def _indexed(eqn: Any, value: Adapted) -> tuple[int | None, int]:
    """The dimension that a gather chooses along, and which column of the indices says where.

    A dynamic_slice under vmap has an index for every dimension: whole ones are clipped to 0.
    """
    dims = tuple(eqn.params["dimension_numbers"].start_index_map)
    chosen = dims
    if len(dims) > 1 and eqn.params["mode"] == lax.GatherScatterMode.CLIP:
        chosen = [dim for dim in dims if eqn.params["slice_sizes"][dim] != value.shape[dim]]
    return (chosen[0], dims.index(chosen[0])) if len(chosen) == 1 else (None, 0)


def _chosen(
    results: list[Any],
    before: Adapted,
    dims: set[int],
    sides: tuple[tuple[bool, bool], ...] = ((True, False),),
) -> list[Any]:
    """The moved value, an activation if rows were chosen along a dimension that A has alone."""
    looked_up = any(term.covers(dim) in sides for term in before.terms for dim in dims)
    [after] = results
    return [after.replace(activation=before.activation or looked_up)]


def _narrowed(eqn: Any, value: Adapted) -> set[int]:
    shape = eqn.outvars[0].aval.shape
    return {dim for dim in range(value.ndim) if shape[dim] != value.shape[dim]}
