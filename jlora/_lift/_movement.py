"""Movements that keep a weight low-rank: the base moves, and each factor on what it covers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
from jax import lax

from jlora._lift import _compat
from jlora._lift._adapted import RANK, Adapted, Factor, Opaque, Term
from jlora._lift._walk import Walk, rule


def move(
    eqn: Any,
    value: Adapted,
    *others: Any,
    factor: Callable[[Factor], Factor],
    new: dict[int, int] | None = None,
) -> list[Any]:
    """The moved value: the equation itself on W (and its other operands), ``factor`` on A and B.

    ``new`` says where each dimension went, if any changed its place.
    """
    [w] = _compat.bind(eqn, [value.w, *others])

    def window(term: Term):
        return ((new[dim] if new else dim, start, size) for dim, start, size in term.window)

    terms = tuple(term.map(factor, window(term)) for term in value.terms)
    return [value.replace(w=w, terms=terms)]


def bases(values: Iterable[Any]) -> list[Any]:
    """The operands with each adapted one's W in its place."""
    return [value.base if isinstance(value, Adapted) else value for value in values]


def relabel(factor: Factor, new: dict[int, int]) -> Factor:
    """The factor with its dimensions renamed; its array does not move."""
    return Factor(factor.array, tuple(RANK if dim == RANK else new[dim] for dim in factor.dims))


def refuse_windows(value: Adapted, dims: Iterable[int], what: str) -> None:
    """Decline a movement of dimensions that a term covers only in part."""
    dims = set(dims)
    if any(dim in dims for term in value.terms for dim, _, _ in term.window):
        raise Opaque(f"{what} along the dimension of an earlier concatenation")


@rule("transpose", reads=("permutation",))
def transpose(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    new = {old: dim for dim, old in enumerate(eqn.params["permutation"])}
    return move(eqn, value, factor=lambda factor: relabel(factor, new), new=new)


@rule("stop_gradient")
def stop_gradient(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    return move(eqn, value, factor=lambda f: Factor(lax.stop_gradient(f.array), f.dims))


@rule(
    "copy",
    "copy_p",
    "optimization_barrier",
    "name",
    "sharding_constraint",
    "reshard",
    "mesh_cast",
    "device_put",
    "pvary",
    "pcast",
    carries=(
        "name",
        "sharding",
        "layout",
        "context_mesh",
        "unconstrained_dims",
        "dst_sharding",
        "concrete_mesh",
        "devices",
        "srcs",
        "copy_semantics",
        "axes",
        "axis_name",
        "to",
    ),
)
def placed(walk: Walk, eqn: Any, *values: Any) -> list[Any]:
    """Says where the weight lives or how it is called: the thin factors live where they are."""
    bare = [value.w if isinstance(value, Adapted) else value for value in values]
    return [
        value.replace(w=result) if isinstance(value, Adapted) else result
        for value, result in zip(values, _compat.bind(eqn, bare), strict=True)
    ]


@rule("convert_element_type", reads=("new_dtype",), carries=("weak_type", "sharding"))
def convert_element_type(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    """A cast waits until the weight meets an operation, of the base as of the factors."""
    if not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
        raise Opaque(f"cast to {eqn.params['new_dtype']} rounds the sum, not its parts")
    # of two casts in a row the first may round: it is made
    return [value.replace(w=value.base, cast=jnp.dtype(eqn.params["new_dtype"]))]


@rule("squeeze", reads=("dimensions",))
def squeeze(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    gone = {dim % value.ndim for dim in eqn.params["dimensions"]}
    new = {old: at for at, old in enumerate(d for d in range(value.ndim) if d not in gone)}
    return move(eqn, value, factor=lambda factor: relabel(_without(factor, gone), new), new=new)


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
    return move(eqn, value, factor=lambda factor: relabel(_without(factor, widened), new), new=new)


@rule("reshape", reads=("new_sizes", "dimensions"), carries=("sharding",))
def reshape(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    """Exact where only dimensions that the same factors cover flow together or apart."""
    if eqn.params["dimensions"] is not None:
        raise Opaque("a reshape that also transposes")
    groups = regroup(value.shape, eqn.params["new_sizes"])
    new: dict[int, int] = {}
    for before, after in groups:
        wide = [dim for dim in before if value.shape[dim] != 1]
        wide_after = [dim for dim in after if eqn.params["new_sizes"][dim] != 1]
        if len(wide) == len(wide_after) == 1:
            new[wide[0]] = wide_after[0]
        elif len(wide) > 1 or len(wide_after) > 1:
            refuse_windows(value, wide, "a reshape")
        for term in value.terms:
            if len({term.covers(dim) for dim in wide}) > 1:
                raise Opaque("a reshape mixes input, output or stack dimensions")
    return move(
        eqn, value, factor=lambda f: _regrouped(f, groups, eqn.params["new_sizes"], value), new=new
    )


Group = tuple[tuple[int, ...], tuple[int, ...]]


def regroup(old: tuple[int, ...], new: tuple[int, ...]) -> list[Group]:
    """The smallest runs of dimensions with equal products: [(old dims, new dims), ...]."""
    if 0 in old or 0 in new:
        raise Opaque("a reshape of an empty array")
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
        groups.append((tuple(range(start_i, i)), tuple(range(start_j, j))))
    return groups


def _regrouped(
    factor: Factor, groups: list[Group], new_sizes: tuple[int, ...], value: Adapted
) -> Factor:
    """The factor with its share of each group reshaped; dimensions of size 1 come and go."""
    order: list[int] = []
    shape: list[int] = []
    dims: list[int] = []
    for old, new in groups:
        covered = [dim for dim in old if dim in factor.dims]
        order += [factor.dims.index(dim) for dim in covered]
        wide = [dim for dim in covered if value.shape[dim] != 1]
        if len(wide) == 1 and sum(new_sizes[dim] != 1 for dim in new) == 1:
            # a dimension that stays, perhaps covered by a window only: its own size
            shape.append(factor.array.shape[factor.dims.index(wide[0])])
            dims += [dim for dim in new if new_sizes[dim] != 1]
        elif wide:
            shape += [new_sizes[dim] for dim in new]
            dims += new
    rank_axis = factor.dims.index(RANK)
    array = lax.transpose(factor.array, (*order, rank_axis))
    return Factor(lax.reshape(array, (*shape, array.shape[-1])), (*dims, RANK))


@rule("stack", reads=("axis",))
def stack(walk: Walk, eqn: Any, *parts: Any) -> list[Any]:
    """Weights along a new dimension: as if each had it with size 1 and they were concatenated."""
    dim = eqn.params["axis"]

    def widened(part: Any) -> Any:
        if not isinstance(part, Adapted):
            return jnp.expand_dims(part, dim)
        new = {old: old + (old >= dim) for old in range(part.ndim)}
        windows = [[(new[d], start, size) for d, start, size in t.window] for t in part.terms]
        terms = (
            term.map(lambda factor: relabel(factor, new), window)
            for term, window in zip(part.terms, windows, strict=True)
        )
        return part.replace(w=jnp.expand_dims(part.w, dim), terms=tuple(terms))

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
    if stacked := _stacked(parts, dim):
        return adapted[0].replace(w=w, terms=stacked, cast=None)
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
    return adapted[0].replace(w=w, terms=tuple(terms), cast=None)


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

    return (Term(joined([t.a for t in terms]), joined([t.b for t in terms]), first.window),)


@rule("slice", reads=("start_indices", "limit_indices", "strides"))
def slice_(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * value.ndim
    strided = [dim for dim in range(value.ndim) if strides[dim] != 1]
    refuse_windows(value, strided, "a strided slice")
    [w] = _compat.bind(eqn, [value.w])
    ranges = {dim: (starts[dim], limits[dim], strides[dim]) for dim in range(value.ndim)}
    terms = tuple(cut for term in value.terms if (cut := _cut(term, ranges)) is not None)
    return _chosen([value.replace(w=w, terms=terms)], value, _narrowed(eqn, value))


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

    def part(factor: Factor) -> Factor:
        bounds = [
            own.get(dim, (0, size, 1))
            for dim, size in zip(factor.dims, factor.array.shape, strict=True)
        ]
        if all(bound == (0, n, 1) for bound, n in zip(bounds, factor.array.shape, strict=True)):
            return factor
        return Factor(lax.slice(factor.array, *zip(*bounds, strict=True)), factor.dims)

    return term.map(part, window)


@rule("split", reads=("sizes", "axis"))
def split(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    """The parts of a fused weight (query, key, value along the outputs)."""
    axis, start = eqn.params["axis"], 0
    results = []
    for w, size in zip(_compat.bind(eqn, [value.w]), eqn.params["sizes"], strict=True):
        bounds = {axis: (start, start + int(size), 1)}
        terms = (_cut(term, bounds) for term in value.terms)
        results.append(value.replace(w=w, terms=tuple(term for term in terms if term is not None)))
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
    at = next(iter(numbers.start_index_map), -1)
    others = [dim for dim in range(value.ndim) if dim != at]
    if (
        len(numbers.start_index_map) != 1
        or tuple(numbers.collapsed_slice_dims) != (at,)
        or numbers.operand_batching_dims
        or sizes[at] != 1
        or any(sizes[dim] != value.shape[dim] for dim in others)
    ):
        raise Opaque("a gather that is no choice of whole slices along one dimension")
    refuse_windows(value, [at], "a gather")
    index_dims = [d for d in range(eqn.outvars[0].aval.ndim) if d not in numbers.offset_dims]
    new = dict(zip(others, numbers.offset_dims, strict=True))
    mode = eqn.params["mode"]
    fills = mode == lax.GatherScatterMode.FILL_OR_DROP
    if fills and any(term.covers(at) == (False, False) for term in value.terms):
        raise Opaque("a gather that fills, along a dimension over which the weight repeats")

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

    one_sided = ((True, False), (False, True))  # a table may be read by its rows as by its columns
    return _chosen(move(eqn, value, indices, factor=part, new=new), value, {at}, one_sided)


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
