"""Movements that keep a weight low-rank: the base moves, and each factor on what it covers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
from jax import lax

from jlora._lift import _compat
from jlora._lift._adapted import RANK, Adapted, Factor, Opaque
from jlora._lift._walk import Walk, rule


def move(
    eqn: Any,
    value: Adapted,
    *others: Any,
    factor: Callable[[Factor], Factor],
    new: dict[int, int] | None = None,
) -> list[Any]:
    """The moved value: the equation itself on W (and its other operands), ``factor`` on the others.

    ``new`` says where each dimension went, if any changed its place.
    """
    [w] = _compat.bind(eqn, [value.w, *others])
    return [value.moved(w, factor, new.__getitem__ if new else None)]


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
    if RANK in factor.dims:
        order.append(factor.dims.index(RANK))
        shape.append(factor.array.shape[order[-1]])
        dims.append(RANK)
    return Factor(lax.reshape(lax.transpose(factor.array, order), shape), tuple(dims))
