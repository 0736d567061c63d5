"""Where weights live: placements, shardings, and functions of each device's own part."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax import lax

from jlora import _placement
from jlora._lift._decline import Decline
from jlora._lift._movement import unmoved
from jlora._lift._operands import fold_in
from jlora._lift._term import Term
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Weight
from jlora._lowrank import Factor


@rule(
    "copy",
    "copy_p",
    "optimization_barrier",
    "name",
    "sharding_constraint",
    "device_put",
    "pvary",
    "pcast",
    carries=(
        "name",
        "sharding",
        "layout",
        "context_mesh",
        "unconstrained_dims",
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
    bare = [value.w if isinstance(value, Weight) else value for value in values]
    return [
        value.replace(w=result) if isinstance(value, Weight) else result
        for value, result in zip(values, walk.run.place(walk, eqn, bare), strict=True)
    ]


@rule("reshard", "mesh_cast", reads=("dst_sharding",), carries=("concrete_mesh",))
def resharded(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """Each factor goes along: as W on the dimensions that it has, on the same type of axes.

    It is small, and what comes next computes on that mesh and may need a dimension whole.
    """
    to = eqn.params["dst_sharding"]
    value = value.filled(dim for dim, entry in enumerate(to.spec) if entry is not None)

    def along(factor: Factor) -> Factor:
        entries = _placement.layout_of(to.spec, factor.dims)
        return Factor(_placement.spread(factor.array, to.mesh, entries), factor.dims)

    moved = walk.move(eqn, value, unmoved(value.ndim, placed=True), along)
    return [moved.map_terms(lambda term: _filter_on(term, to.mesh))]


def _filter_on(term: Term, mesh: Any) -> Term:
    """The term with a filter's own arrays (a key) on the mesh where its factors are."""
    if term.filter is None:
        return term
    leaves = jax.tree.map(lambda array: _placement.on(array, mesh), term.filter)
    return dataclasses.replace(term, filter=leaves)


@rule(
    "shard_map",
    reads=("mesh", "in_specs", "out_specs", "jaxpr", "check_vma", "newly_manual_axes"),
    carries=("debug_info",),
)
def shard_map(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """Each device has its part of W, and the parts of A and B that belong to it."""
    params = eqn.params
    inside = walk.inside(eqn)
    named = [dict(enumerate(spec)) for spec in params["in_specs"]]
    operands = tuple(
        value.filled(dim for dim, axis in names.items() if axis is not None)
        if isinstance(value, Weight)
        else value
        for value, names in zip(operands, named, strict=True)
    )
    manual = frozenset(params["newly_manual_axes"])
    operands = tuple(
        _divided(value, params["mesh"], spec, manual) if isinstance(value, Weight) else value
        for value, spec in zip(operands, params["in_specs"], strict=True)
    )

    def body(*operands):
        operands = [
            value.replace(parts=_parts(names)) if isinstance(value, Weight) else value
            for value, names in zip(operands, named, strict=True)
        ]
        if any(isinstance(value, Weight) and value.drops for value in operands):
            for axis in params["newly_manual_axes"]:
                operands = fold_in(operands, lax.axis_index(axis))
        results = inside(params["jaxpr"], list(operands))
        return inside.merged(results, eqn, "returned from a shard_map")

    def specs():
        return tuple(map(_specs, operands, params["in_specs"]))

    return walk.run.shard_map(
        body,
        operands,
        specs,
        mesh=params["mesh"],
        out_specs=list(params["out_specs"]),
        check_vma=params["check_vma"],
        axis_names=set(manual),
    )


def _parts(names: dict[int, Any]) -> tuple[tuple[str, int], ...]:
    """The mesh axes over which a weight is divided, and the dimension of each."""
    return tuple((axis, dim) for dim, axes in names.items() for axis in _placement.axes_of(axes))


def _divided(value: Weight, mesh: Any, spec: Any, manual: frozenset[str]) -> Weight:
    """The weight with its factors divided over explicit axes as `_specs` says."""

    def placed_as_w(factor: Factor) -> Factor:
        entries = _placement.layout_of(spec, factor.dims)
        return Factor(_placement.divide(factor.array, mesh, entries, manual), factor.dims)

    return value.moved(value.w, unmoved(value.ndim), placed_as_w)


def _specs(value: Any, spec: Any) -> Any:
    """W's own partition, and for each factor the same mesh axes on the dimensions that it has."""
    if not isinstance(value, Weight):
        return spec

    def placed_as_w(factor: Factor) -> Factor:
        entries = _placement.layout_of(spec, factor.dims)
        return Factor(jax.sharding.PartitionSpec(*entries), factor.dims)  # pyright: ignore

    moved = value.moved(spec, unmoved(value.ndim), placed_as_w)
    everywhere = jax.sharding.PartitionSpec()
    return jax.tree.map(  # what is left are a filter's own arrays
        lambda leaf: leaf if isinstance(leaf, jax.sharding.PartitionSpec) else everywhere,
        moved,
        is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
    )


@rule(
    "all_gather",
    reads=("all_gather_dimension", "axis_name", "axis_index_groups", "tiled"),
    carries=("axis_size",),
)
def all_gather(walk: Walk, eqn: Any, value: Weight) -> list[Any]:
    """A weight kept in parts (as fully sharded training does): the factors' parts are gathered."""
    params = eqn.params
    dim, name = params["all_gather_dimension"], params["axis_name"]
    names = name if isinstance(name, tuple) else (name,)
    if not params["tiled"]:
        raise Decline("an all_gather that makes a new dimension")
    own = None if value.parts is None else dict(value.parts)
    if own is None or any(own.get(each, dim) != dim for each in names):
        raise Decline("an all_gather along another dimension than that which is divided")
    value = value.filled([dim])

    def whole(factor: Factor) -> Factor:
        if dim not in factor.dims:
            return factor
        gathered = lax.all_gather(
            factor.array,
            name,
            axis_index_groups=params["axis_index_groups"],
            axis=factor.dims.index(dim),
            tiled=True,
        )
        return Factor(gathered, factor.dims)

    return [walk.move(eqn, value, unmoved(value.ndim), whole)]
