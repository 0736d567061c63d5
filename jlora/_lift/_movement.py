"""Movements that keep a weight low-rank: the base moves, and each factor on what it covers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from jlora._lift import _compat
from jlora._lift._adapted import RANK, Adapted, Factor, Opaque, Term, membership
from jlora._lift._walk import Walk, rule


def move(eqn: Any, value: Adapted, *others: Any, factor: Callable[[Factor], Factor]) -> list[Any]:
    """The moved value: the equation itself on W (and its other operands), ``factor`` on A and B."""
    [w] = _compat.bind(eqn, [value.w, *others])
    terms = tuple((factor(a), factor(b)) for a, b in value.terms)
    return [value.replace(w=w, terms=terms)]


def relabel(factor: Factor, new: dict[int, int]) -> Factor:
    """The factor with its dimensions renamed; its array does not move."""
    return Factor(factor.array, tuple(RANK if dim == RANK else new[dim] for dim in factor.dims))


@rule("transpose", reads=("permutation",))
def transpose(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    new = {old: dim for dim, old in enumerate(eqn.params["permutation"])}
    return move(eqn, value, factor=lambda factor: relabel(factor, new))


@rule("copy", "copy_p", "stop_gradient", "optimization_barrier", "name", carries=("name",))
def unchanged(walk: Walk, eqn: Any, *values: Any) -> list[Any]:
    """The base through the operation; factors too where it is one of gradients."""
    bare = [value.w if isinstance(value, Adapted) else value for value in values]
    results = _compat.bind(eqn, bare)

    def through(value, result):
        if not isinstance(value, Adapted):
            return result
        if eqn.primitive.name != "stop_gradient":
            return value.replace(w=result)
        factors = (
            tuple(Factor(lax.stop_gradient(f.array), f.dims) for f in term) for term in value.terms
        )
        return value.replace(w=result, terms=tuple(factors))

    return [through(value, result) for value, result in zip(values, results, strict=True)]


@rule("convert_element_type", reads=("new_dtype",), carries=("weak_type", "sharding"))
def convert_element_type(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    """A cast of the base; the factors keep their dtype until they meet an operation."""
    if not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
        raise Opaque(f"cast to {eqn.params['new_dtype']} rounds the sum, not its parts")
    return move(eqn, value, factor=lambda factor: factor)


@rule("neg")
def neg(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    [w] = _compat.bind(eqn, [value.w])
    return [value.replace(w=w, terms=_scaled(value.terms, lambda array: -array))]


@rule("add", "add_any", "sub", carries=("out_dtype",))
def add(walk: Walk, eqn: Any, x: Any, y: Any) -> list[Any]:
    """W + V keeps W's factors, and V's if it has some."""
    if any(isinstance(value, Adapted) and value.looked_up for value in (x, y)):
        raise Opaque("rows are added")  # an activation from here on
    bare = [value.w if isinstance(value, Adapted) else value for value in (x, y)]
    shape = eqn.outvars[0].aval.shape
    if any(isinstance(value, Adapted) and value.shape != shape for value in (x, y)):
        raise Opaque("a sum that broadcasts the weight")
    [w] = _compat.bind(eqn, bare)
    x_terms = x.terms if isinstance(x, Adapted) else ()
    y_terms = y.terms if isinstance(y, Adapted) else ()
    if eqn.primitive.name == "sub":
        y_terms = _scaled(y_terms, lambda array: -array)
    first = x if isinstance(x, Adapted) else y
    return [first.replace(w=w, terms=(*x_terms, *y_terms))]


@rule("mul", carries=("out_dtype",))
def mul(walk: Walk, eqn: Any, x: Any, y: Any) -> list[Any]:
    """By a scalar: one factor takes it."""
    value, scalar = (x, y) if isinstance(x, Adapted) else (y, x)
    if isinstance(scalar, Adapted) or math.prod(jnp.shape(scalar)) != 1:
        raise Opaque("an elementwise product with an array is not of low rank")
    [w] = _compat.bind(eqn, [value.w, scalar] if value is x else [scalar, value.w])
    number = jnp.reshape(scalar, ())
    return [value.replace(w=w, terms=_scaled(value.terms, lambda a: a * number.astype(a.dtype)))]


@rule("div")
def div(walk: Walk, eqn: Any, x: Any, y: Any) -> list[Any]:
    """By a scalar: one factor takes it."""
    if isinstance(y, Adapted) or math.prod(jnp.shape(y)) != 1:
        raise Opaque("an elementwise quotient with an array is not of low rank")
    [w] = _compat.bind(eqn, [x.w, y])
    number = jnp.reshape(y, ())
    return [x.replace(w=w, terms=_scaled(x.terms, lambda a: a / number.astype(a.dtype)))]


def _scaled(terms: tuple[Term, ...], change: Callable[[Any], Any]) -> tuple[Term, ...]:
    return tuple((Factor(change(a.array), a.dims), b) for a, b in terms)


@rule("squeeze", reads=("dimensions",))
def squeeze(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    gone = {dim % value.ndim for dim in eqn.params["dimensions"]}
    new = {old: at for at, old in enumerate(d for d in range(value.ndim) if d not in gone)}
    return move(eqn, value, factor=lambda factor: relabel(_without(factor, gone), new))


def _without(factor: Factor, gone: set[int]) -> Factor:
    """The factor without dimensions of size 1."""
    axes = tuple(axis for axis, dim in enumerate(factor.dims) if dim in gone)
    dims = tuple(dim for dim in factor.dims if dim not in gone)
    return Factor(lax.squeeze(factor.array, axes), dims) if axes else factor


@rule("broadcast_in_dim", reads=("shape", "broadcast_dimensions"), carries=("sharding",))
def broadcast_in_dim(walk: Walk, eqn: Any, value: Adapted, *dynamic: Any) -> list[Any]:
    """New dimensions are covered by no factor; neither are those of size 1 that were widened."""
    if dynamic:
        raise Opaque("a broadcast to a shape that is known only at run time")
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    widened = {old for old, new in enumerate(dims) if value.shape[old] != shape[new]}
    new = dict(enumerate(dims))
    return move(eqn, value, factor=lambda factor: relabel(_without(factor, widened), new))


@rule("reshape", reads=("new_sizes", "dimensions"), carries=("sharding",))
def reshape(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    """Exact where only dimensions that the same factors cover flow together or apart."""
    if eqn.params["dimensions"] is not None:
        raise Opaque("a reshape that also transposes")
    groups = regroup(value.shape, eqn.params["new_sizes"])
    for term in value.terms:
        for old, _ in groups:
            if len({membership(term, dim) for dim in old if value.shape[dim] != 1}) > 1:
                raise Opaque("a reshape mixes input, output or stack dimensions")
    return move(eqn, value, factor=lambda factor: _regrouped(factor, groups, eqn, value))


def regroup(
    old: tuple[int, ...], new: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The smallest runs of dimensions with equal products: [(old dims, new dims), ...]."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        old_product = new_product = 1
        while (i == start_i and j == start_j) or old_product != new_product:
            if i < len(old) and (old_product <= new_product or j >= len(new)):
                old_product *= old[i]
                i += 1
            else:
                new_product *= new[j]
                j += 1
            if old_product == 0 or new_product == 0:
                raise Opaque("a reshape of an empty array")
        groups.append((tuple(range(start_i, i)), tuple(range(start_j, j))))
    return groups


def _regrouped(factor: Factor, groups, eqn: Any, value: Adapted) -> Factor:
    """The factor with its share of each group reshaped; dimensions of size 1 come and go."""
    order: list[int] = []
    shape: list[int] = []
    dims: list[int] = []
    for old, new in groups:
        covered = [dim for dim in old if dim in factor.dims]
        order += [factor.dims.index(dim) for dim in covered]
        if covered and any(value.shape[dim] != 1 for dim in covered):
            shape += [eqn.params["new_sizes"][dim] for dim in new]
            dims += new
    rank_axis = factor.dims.index(RANK)
    array = lax.transpose(factor.array, (*order, rank_axis))
    rank = factor.array.shape[rank_axis]
    return Factor(lax.reshape(array, (*shape, rank)), (*dims, RANK))


@rule("slice", reads=("start_indices", "limit_indices", "strides"))
def slice_(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * value.ndim

    def part(factor: Factor) -> Factor:
        ranges = [
            (0, size, 1) if dim == RANK else (starts[dim], limits[dim], strides[dim])
            for dim, size in zip(factor.dims, factor.array.shape, strict=True)
        ]
        return Factor(lax.slice(factor.array, *zip(*ranges, strict=True)), factor.dims)

    return _chosen(move(eqn, value, factor=part), value, _narrowed(eqn, value))


@rule("dynamic_slice", reads=("slice_sizes",))
def dynamic_slice(walk: Walk, eqn: Any, value: Adapted, *starts: Any) -> list[Any]:
    if isinstance(value, Adapted) and any(isinstance(start, Adapted) for start in starts):
        raise Opaque("an index that is itself adapted")
    sizes = eqn.params["slice_sizes"]

    def part(factor: Factor) -> Factor:
        begin = [jnp.zeros_like(starts[0]) if d == RANK else starts[d] for d in factor.dims]
        extent = [
            size if dim == RANK else sizes[dim]
            for dim, size in zip(factor.dims, factor.array.shape, strict=True)
        ]
        return Factor(lax.dynamic_slice(factor.array, begin, extent), factor.dims)

    return _chosen(move(eqn, value, *starts, factor=part), value, _narrowed(eqn, value))


@rule("split", reads=("sizes", "axis"))
def split(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    """The parts of a fused weight (query, key, value along the outputs)."""
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]

    def parts(factor: Factor) -> list[Factor]:
        if axis not in factor.dims:
            return [factor] * len(sizes)
        arrays = lax.split(factor.array, sizes, factor.dims.index(axis))
        return [Factor(array, factor.dims) for array in arrays]

    split_terms = [zip(parts(a), parts(b), strict=True) for a, b in value.terms]
    terms_of_parts = zip(*split_terms, strict=True)
    bases = _compat.bind(eqn, [value.w])
    return [
        value.replace(w=w, terms=tuple(terms))
        for w, terms in zip(bases, terms_of_parts, strict=True)
    ]


@rule(
    "gather",
    reads=("dimension_numbers", "slice_sizes", "mode", "fill_value"),
    carries=("indices_are_sorted", "unique_indices"),
)
def gather(walk: Walk, eqn: Any, value: Any, indices: Any) -> list[Any]:
    """Whole slices chosen along one dimension, as an embedding lookup or ``W[layers]`` does."""
    if isinstance(indices, Adapted):
        raise Opaque("an index that is itself adapted")
    dnums, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    whole = [dim for dim in range(value.ndim) if sizes[dim] == value.shape[dim]]
    chosen = [dim for dim in dnums.start_index_map if sizes[dim] == 1]
    if (
        len(dnums.start_index_map) != 1
        or tuple(dnums.collapsed_slice_dims) != tuple(chosen)
        or dnums.operand_batching_dims
        or set(whole) | set(chosen) != set(range(value.ndim))
    ):
        raise Opaque("a gather that is no choice of whole slices along one dimension")
    [at] = chosen
    others = [dim for dim in range(value.ndim) if dim != at]
    index_dims = [d for d in range(eqn.outvars[0].aval.ndim) if d not in dnums.offset_dims]
    new = dict(zip(others, dnums.offset_dims, strict=True))
    mode = eqn.params["mode"]
    fills = mode == lax.GatherScatterMode.FILL_OR_DROP

    def part(factor: Factor) -> Factor:
        if at not in factor.dims:
            return relabel(factor, new)
        axis = factor.dims.index(at)
        rest = tuple(dim for dim in factor.dims if dim != at)
        rows = lax.gather(
            factor.array,
            indices,
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

    return _chosen(move(eqn, value, indices, factor=part), value, {at})


def _chosen(results: list[Any], before: Adapted, dims: set[int]) -> list[Any]:
    """The moved value, marked as looked up if along a dimension that one factor alone covers."""
    one_sided = any(
        a_covers != b_covers
        for term in before.terms
        for a_covers, b_covers in (membership(term, dim) for dim in dims)
    )
    [after] = results
    return [after.replace(looked_up=before.looked_up or one_sided)]


def _narrowed(eqn: Any, value: Adapted) -> set[int]:
    shape = eqn.outvars[0].aval.shape
    return {dim for dim in range(value.ndim) if shape[dim] != value.shape[dim]}
