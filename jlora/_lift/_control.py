"""Control flow around adapted weights, rebuilt with JAX's public functions.

`Adapted` is a pytree, so jit, checkpoint and switch take and return it as it is; loops split it
into what is scanned and what stays.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._lift import _compat
from jlora._lift._adapted import RANK, Adapted, Factor, Opaque, at_place
from jlora._lift._movement import move, refuse_windows
from jlora._lift._walk import Walk, rule


@rule(
    "jit",
    "pjit",
    reads=("jaxpr", "name"),
    carries=(
        "in_shardings",
        "out_shardings",
        "in_layouts",
        "out_layouts",
        "donated_invars",
        "ctx_mesh",
        "keep_unused",
        "inline",
        "compiler_options_kvs",
    ),
)
def jit(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """A nested jit keeps its name and is traced once for equal calls."""
    jaxpr, name = eqn.params["jaxpr"], eqn.params["name"]
    inside = walk.inside(eqn)

    def body(*operands):
        results = inside(jaxpr, _constrain(eqn.params, "in_shardings", operands))
        return _constrain(eqn.params, "out_shardings", results)

    if not walk.share_jits:
        return body(*operands)
    body.__name__ = body.__qualname__ = name
    # Equal calls have one jaxpr: with one jitted function for it, JAX's own cache knows them.
    return walk.jits.setdefault((id(jaxpr), name), jax.jit(body))(*operands)


def _constrain(params: dict[str, Any], which: str, values: Any) -> list[Any]:
    """The values under the shardings that the model's jit names, if it names any."""

    def one(value, sharding):
        if isinstance(value, Adapted):
            return value.replace(w=one(value.w, sharding))
        return lax.with_sharding_constraint(value, sharding)

    shardings = params.get(which) or [None] * len(values)
    return [
        one(value, sharding) if _compat.is_sharding(sharding) else value
        for value, sharding in zip(values, shardings, strict=True)
    ]


@rule("closed_call", "core_call", "call", reads=("call_jaxpr",), carries=("name",))
def call(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    return walk.inside(eqn)(eqn.params["call_jaxpr"], list(operands))


@rule(
    "checkpoint",
    "remat",
    "remat2",
    reads=("jaxpr", "prevent_cse", "policy"),
    carries=("differentiated",),
)
def checkpoint(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """Rematerialisation of the lifted body, under the model's own policy."""

    @functools.partial(
        jax.checkpoint, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
    )
    def body(*operands):
        return walk.inside(eqn)(eqn.params["jaxpr"], list(operands))

    return body(*operands)


@rule(
    "scan",
    reads=("jaxpr", "length", "reverse", "unroll"),
    carries=("num_consts", "num_carry", "ft_in", "ft_out", "linear", "_split_transpose"),
)
def scan(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """A weight scanned along its stack gives each step its own factors."""
    jaxpr, _ = _compat.open_jaxpr(eqn.params["jaxpr"])
    counts = _compat.scan_counts(eqn)
    consts, carry, xs = _compat.partition(list(operands), *counts)
    kept = _kept(jaxpr.invars[counts[0] : sum(counts)], jaxpr.outvars, carry)
    loose, rejoin = _loose(walk, eqn, carry, kept)
    scanned, unslice = zip(*map(_sliced, xs), strict=True) if xs else ((), ())

    def body(loose, scanned):
        step, *scanned = scanned
        slices = [build(part) for build, part in zip(unslice, scanned, strict=True)]
        operands = at_place([*consts, *rejoin(loose), *slices], step)
        results = inside(eqn.params["jaxpr"], operands)
        carried, ys = _compat.partition(results, counts[1])
        carried = [value for value, keep in zip(carried, kept, strict=True) if not keep]
        carried = inside.plain(carried, eqn, "carried from step to step, changed")
        return carried, ys

    inside = walk.inside(eqn, times=eqn.params["length"])
    steps = jnp.arange(eqn.params["length"]) if _filtered(operands) else None
    loose, ys = lax.scan(
        body,
        loose,
        (steps, *scanned),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    return [*rejoin(loose), *map(_stacked, ys)]


@rule("while", reads=("cond_jaxpr", "cond_nconsts", "body_jaxpr", "body_nconsts"))
def while_loop(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """Weights are constants of the loop, or are carried unchanged, which is the same."""
    params = eqn.params
    cond_consts, body_consts, carry = _compat.partition(
        list(operands), params["cond_nconsts"], params["body_nconsts"]
    )
    body_jaxpr, _ = _compat.open_jaxpr(params["body_jaxpr"])
    kept = _kept(body_jaxpr.invars[params["body_nconsts"] :], body_jaxpr.outvars, carry)
    loose, rejoin = _loose(walk, eqn, carry, kept)
    inside = walk.inside(eqn)

    def cond(state):
        step, loose = state
        operands = at_place([*cond_consts, *rejoin(loose)], step)
        [proceed] = inside(params["cond_jaxpr"], operands)
        return proceed

    def body(state):
        step, loose = state
        operands = at_place([*body_consts, *rejoin(loose)], step)
        results = inside(params["body_jaxpr"], operands)
        results = [value for value, keep in zip(results, kept, strict=True) if not keep]
        results = walk.plain(results, eqn, "carried from step to step, changed")
        return None if step is None else step + 1, results

    steps = jnp.int32(0) if _filtered(operands) else None
    return rejoin(lax.while_loop(cond, body, (steps, loose))[1])


@rule("cond", reads=("branches",), carries=("linear", "name"))
def cond(walk: Walk, eqn: Any, index: Any, *operands: Any) -> list[Any]:
    """Each branch uses the weights that it uses."""

    inside = walk.inside(eqn)

    def branch(jaxpr):
        return lambda *operands: walk.plain(
            inside(jaxpr, list(operands)), eqn, "returned from a branch"
        )

    return lax.switch(index, [branch(jaxpr) for jaxpr in eqn.params["branches"]], *operands)


@rule(
    "shard_map",
    reads=("mesh", "in_specs", "out_specs", "jaxpr", "check_vma", "newly_manual_axes"),
    carries=("debug_info",),
)
def shard_map(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """Each device has its part of W, and the parts of A and B that belong to it."""
    params = eqn.params
    inside = walk.inside(eqn)

    def body(*operands):
        for axis in params["newly_manual_axes"] if _filtered(operands) else ():
            operands = at_place(operands, lax.axis_index(axis))
        results = inside(params["jaxpr"], list(operands))
        return inside.plain(results, eqn, "returned from a shard_map")

    specs = [_specs(value, spec) for value, spec in zip(operands, params["in_specs"], strict=True)]
    mapped = jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=tuple(specs),
        out_specs=list(params["out_specs"]),
        check_vma=params["check_vma"],
        axis_names=set(params["newly_manual_axes"]),
    )
    return mapped(*operands)


def _specs(value: Any, spec: Any) -> Any:
    """W's own partition, and for each factor the same mesh axes on the dimensions that it has."""
    if not isinstance(value, Adapted):
        return spec
    named = dict(enumerate(spec))
    if any(named.get(dim) is not None for term in value.terms for dim, _, _ in term.window):
        raise Opaque("a shard_map over weights that were concatenated")

    def of(factor: Factor) -> Factor:
        entries = (None if dim == RANK else named.get(dim) for dim in factor.dims)
        return Factor(jax.sharding.PartitionSpec(*entries), factor.dims)  # pyright: ignore

    moved, everywhere = value.moved(spec, of), jax.sharding.PartitionSpec()
    filter_ = jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.sharding.PartitionSpec) else everywhere,
        moved.filter,
        is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
    )
    return moved.replace(filter=filter_)


@rule(
    "all_gather",
    reads=("all_gather_dimension", "axis_name", "axis_index_groups", "tiled"),
    carries=("axis_size",),
)
def all_gather(walk: Walk, eqn: Any, value: Adapted) -> list[Any]:
    """A weight kept in parts (as fully sharded training does): the factors' parts are gathered."""
    dim, params = eqn.params["all_gather_dimension"], eqn.params
    if not params["tiled"]:
        raise Opaque("an all_gather that makes a new dimension")
    refuse_windows(value, [dim], "an all_gather")

    def whole(factor: Factor) -> Factor:
        if dim not in factor.dims:
            return factor
        gathered = lax.all_gather(
            factor.array,
            params["axis_name"],
            axis_index_groups=params["axis_index_groups"],
            axis=factor.dims.index(dim),
            tiled=True,
        )
        return Factor(gathered, factor.dims)

    return move(eqn, value, factor=whole)


def _kept(inner: list[Any], results: list[Any], carry: list[Any]) -> list[bool]:
    """Which adapted values a loop only hands on: they are constants of it."""
    return [
        isinstance(value, Adapted) and before is after
        for before, after, value in zip(inner, results, carry, strict=False)
    ]


def _loose(walk: Walk, eqn: Any, carry: list[Any], kept: list[bool]):
    """The carry that really changes, and how to put the whole together again."""
    loose = [value for value, keep in zip(carry, kept, strict=True) if not keep]
    loose = walk.plain(loose, eqn, "carried from step to step, changed")

    def rejoin(loose):
        rest = iter(loose)
        return [value if keep else next(rest) for value, keep in zip(carry, kept, strict=True)]

    return loose, rejoin


def _sliced(value: Any):
    """What of a value is scanned along its first dimension, and how a step puts it together."""
    if not isinstance(value, Adapted):
        return value, lambda part: part

    scanned: list[Any] = []

    def leading(factor: Factor) -> Factor:
        if 0 in factor.dims:
            scanned.append(jnp.moveaxis(factor.array, factor.dims.index(0), 0))
        return factor

    def build(part):
        w, scanned = part
        rest = iter(scanned)

        def rebuilt(factor: Factor):
            array = factor.array if 0 not in factor.dims else next(rest)
            return Factor(array, tuple(d if d == RANK else d - 1 for d in factor.dims if d != 0))

        return value.moved(w, rebuilt, lambda dim: dim - 1)

    if any(dim == 0 for term in value.terms for dim, _, _ in term.window):
        raise Opaque("a scan over weights that were concatenated")
    value.moved(value.w, leading)
    return (value.w, scanned), build


def _stacked(value: Any) -> Any:
    """The results of all steps as one adapted value with a new first dimension."""
    if not isinstance(value, Adapted):
        return value

    def shifted(factor: Factor) -> Factor:
        return Factor(factor.array, (0, *(RANK if d == RANK else d + 1 for d in factor.dims)))

    moved = value.moved(value.w, shifted, lambda dim: dim + 1)
    return moved.replace(filter=None if moved.filter is None else moved.filter.stacked())


def _filtered(values: Any) -> bool:
    return any(isinstance(value, Adapted) and value.filter is not None for value in values)
