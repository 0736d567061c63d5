"""Movements that keep a weight low-rank: the base moves, and each factor on what it covers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax

from jlora._lift._decline import Decline
from jlora._lift._movement import Movement, relabel, unmoved, without
from jlora._lift._operands import refuse_form
from jlora._lift._term import Term
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Weight
from jlora._lowrank import RANK, Factor


@rule("transpose", reads=("permutation",))
def transpose(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    movement = Movement(tuple((dim,) for dim in eqn.params["permutation"]))
    return [walk.move(eqn, value, movement, lambda factor: relabel(factor, movement.new))]


@rule("stop_gradient")
def stop_gradient(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    stopped = lambda f: Factor(lax.stop_gradient(f.array), f.dims)  # noqa: E731
    return [walk.move(eqn, value, unmoved(value.ndim), stopped)]


@rule("convert_element_type", reads=("new_dtype",), carries=("weak_type", "sharding"))
def convert_element_type(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """A cast waits until the weight meets an operation, of the base as of the factors."""
    new = jnp.dtype(eqn.params["new_dtype"])
    if not jnp.issubdtype(new, jnp.inexact):
        raise Decline(f"cast to {new} rounds the sum, not its parts")
    if _is_complex(value.dtype) and not _is_complex(new):
        raise Decline(f"cast to {new} leaves the imaginary part out")
    # of two casts in a row the first may round: it is made
    return [value.replace(w=value.base, cast=new)]


def _is_complex(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)


@rule("reduce_precision", reads=("exponent_bits", "mantissa_bits"))
def reduce_precision(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """A cast to fewer bits: of the base as of the factors."""

    def rounded(factor: Factor) -> Factor:
        if not jnp.issubdtype(factor.array.dtype, jnp.floating):
            return factor
        return Factor(lax.reduce_precision(factor.array, **eqn.params), factor.dims)

    value = value.replace(w=value.base, cast=None)
    w = walk.run.move(walk, eqn, [value.w], unmoved(value.ndim), rounded)
    terms = [
        dataclasses.replace(term, a=rounded(term.a), b=rounded(term.b)) for term in value.terms
    ]
    return [value.replace(w=w, terms=tuple(terms))]


@rule("squeeze", reads=("dimensions",))
def squeeze(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    gone = {dim % value.ndim for dim in eqn.params["dimensions"]}
    movement = without(gone, value.ndim)
    value = value.filled(gone)
    return [
        walk.move(
            eqn, value, movement, lambda factor: relabel(_without(factor, gone), movement.new)
        )
    ]


def _without(factor: Factor, gone: set[int]) -> Factor:
    """The factor without dimensions of size 1."""
    axes = tuple(axis for axis, dim in enumerate(factor.dims) if dim in gone)
    dims = tuple(dim for dim in factor.dims if dim not in gone)
    return Factor(lax.squeeze(factor.array, axes), dims) if axes else factor


@rule("broadcast_in_dim", reads=("shape", "broadcast_dimensions"), carries=("sharding",))
def broadcast_in_dim(walk: Walk, eqn: Any, value: Weight, *dynamic: Any) -> list[Any]:
    """New dimensions are covered by no factor; neither are those of size 1 that were widened."""
    if dynamic:
        raise Decline("a broadcast to a shape that is known only at run time")
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    widened = {old for old, new in enumerate(dims) if value.shape[old] != shape[new]}
    value = value.filled(widened)
    sources: list[tuple[int, ...]] = [()] * len(shape)
    for old, new in enumerate(dims):
        sources[new] = (old,)
    larger = any(n != 1 for at, n in enumerate(shape) if at not in dims) or bool(widened)
    movement = Movement(tuple(sources), spread=larger)
    return [
        walk.move(
            eqn, value, movement, lambda factor: relabel(_without(factor, widened), movement.new)
        )
    ]


@rule("reshape", reads=("new_sizes", "dimensions"), carries=("sharding",))
def reshape(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """Exact where only dimensions that the same factors cover flow together or apart.

    A dimension over which the weight repeats may flow together with any: the factors repeat there.
    """
    if eqn.params["dimensions"] is not None:
        raise Decline("a reshape that also transposes")
    new_sizes = eqn.params["new_sizes"]
    groups = regroup(value.shape, new_sizes)
    sources: list[tuple[int, ...]] = [()] * len(new_sizes)
    same: dict[int, int] = {}  # dimensions that stay one
    mixed: set[int] = set()
    for before, after in groups:
        wide = [dim for dim in before if value.shape[dim] != 1]
        wide_after = [dim for dim in after if new_sizes[dim] != 1] or after[:1]
        for dim in wide_after:
            sources[dim] = before
        if len(wide) == len(wide_after) == 1:
            same[wide[0]] = wide_after[0]
        else:
            mixed.update(wide)
    value = value.filled(mixed)
    for before, _ in groups:
        wide = [dim for dim in before if value.shape[dim] != 1]
        for term in value.terms:
            if len({term.covers(dim) for dim in wide} - {(False, False)}) > 1:
                raise Decline("a reshape mixes input, output or stack dimensions")
    movement = Movement(tuple(sources), parted=frozenset(mixed), same=tuple(same.items()))
    return [
        walk.move(eqn, value, movement, lambda f: _regrouped(f, groups, new_sizes, value.shape))
    ]


Group = tuple[tuple[int, ...], tuple[int, ...]]


def regroup(old: tuple[int, ...], new: tuple[int, ...]) -> list[Group]:
    """The smallest runs of dimensions with equal products: [(old dims, new dims), ...]."""
    if 0 in old or 0 in new:
        raise Decline("a reshape of an empty array")
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
    factor: Factor,
    groups: list[Group],
    new_sizes: tuple[int, ...],
    old_sizes: tuple[int, ...],
) -> Factor:
    """The factor with its share of each group reshaped; dimensions of size 1 come and go."""
    array, have = factor.array, list(factor.dims)
    for old, _ in groups:
        wide = [dim for dim in old if old_sizes[dim] != 1]
        if any(dim in have for dim in wide):  # it repeats along the others
            for dim in (dim for dim in wide if dim not in have):
                array = jnp.broadcast_to(array, (old_sizes[dim], *array.shape))
                have.insert(0, dim)
    order: list[int] = []
    shape: list[int] = []
    dims: list[int] = []
    for old, new in groups:
        order += [have.index(dim) for dim in old if dim in have]
        wide = [dim for dim in old if dim in have and old_sizes[dim] != 1]
        if len(wide) == 1 and sum(new_sizes[dim] != 1 for dim in new) == 1:
            # a dimension that stays, perhaps covered by a window only: its own size
            shape.append(array.shape[have.index(wide[0])])
            dims += [dim for dim in new if new_sizes[dim] != 1]
        elif wide:
            shape += [new_sizes[dim] for dim in new]
            dims += new
    if RANK in have:
        order.append(have.index(RANK))
        shape.append(array.shape[order[-1]])
        dims.append(RANK)
    array = lax.transpose(array, order)
    return Factor(array if array.shape == tuple(shape) else lax.reshape(array, shape), tuple(dims))


@rule("rev", reads=("dimensions",))
def rev(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """Each factor is reversed along the dimensions that it has."""
    turned = set(eqn.params["dimensions"])

    def reversed_(factor: Factor) -> Factor:
        axes = [axis for axis, dim in enumerate(factor.dims) if dim in turned]
        return Factor(lax.rev(factor.array, axes), factor.dims) if axes else factor

    def window(term: Term) -> Term:
        windows = [
            (dim, value.shape[dim] - start - size if dim in turned else start, size)
            for dim, start, size in term.window
        ]
        return dataclasses.replace(term, window=tuple(windows))

    movement = unmoved(value.ndim, parted=frozenset(turned))
    return [walk.move(eqn, value, movement, reversed_).map_terms(window)]


@rule("pad", reads=("padding_config",))
def pad(walk: Walk, eqn: Any, value: Any, padding: Any) -> list[Any]:
    """Zeros in a factor that has the dimension: nothing is added to the padding."""
    refuse_form(value)
    if isinstance(padding, Weight):
        raise Decline("the padding is itself adapted")
    config = eqn.params["padding_config"]
    wide = frozenset(dim for dim, each in enumerate(config) if any(each))
    value = value.filled(wide)
    if any(term.covers(dim) == (False, False) for term in value.terms for dim in wide):
        raise Decline("a padding along a dimension over which the weight repeats")

    def padded(factor: Factor, by: float = 0) -> Factor:
        axes = [config[dim] if dim in wide else (0, 0, 0) for dim in factor.dims]
        filling = jnp.asarray(by, factor.array.dtype)
        return Factor(lax.pad(factor.array, filling, axes), factor.dims)

    value = value.replace(w=value.base, cast=None)
    moved = walk.move(eqn, value, unmoved(value.ndim, parted=wide), padded, padding)
    if value.gain is not None:
        moved = moved.replace(gain=padded(value.gain, 1))
    return [moved]


@rule("tile", reads=("reps",))
def tile(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """Each factor repeats along the dimensions that it has."""
    reps = eqn.params["reps"]
    repeated = frozenset(dim for dim, count in enumerate(reps) if count != 1)
    value = value.filled(repeated)

    def tiled(factor: Factor) -> Factor:
        counts = [1 if dim == RANK else reps[dim] for dim in factor.dims]
        return Factor(jnp.tile(factor.array, counts), factor.dims)

    return [walk.move(eqn, value, unmoved(value.ndim, parted=repeated), tiled)]
