"""Control flow around weights, rebuilt by the runner: jitted, rematerialised, looped, chosen.

`Weight` is a pytree, so jit, checkpoint and switch take and return it as it is; loops split it
into what is scanned and what stays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jlora._lift import _jax
from jlora._lift._base import Base
from jlora._lift._movement import with_new, without
from jlora._lift._operands import fold_in
from jlora._lift._term import Term
from jlora._lift._walk import PRODUCTS, RULES, Walk, rule
from jlora._lift._weight import Weight
from jlora._lowrank import RANK, Factor


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
    inside = walk.inside(eqn, jaxpr=eqn.params["jaxpr"])

    def body(*operands):
        operands = _constrain(walk, eqn.params, "in_shardings", operands)
        results = inside(eqn.params["jaxpr"], operands)
        return _constrain(walk, eqn.params, "out_shardings", results)

    return walk.run.jit(eqn, body, operands)


def _constrain(walk: Walk, params: dict[str, Any], which: str, values: Any) -> list[Any]:
    """The values under the shardings that the model's jit names, if it names any."""

    def one(value, sharding):
        if isinstance(value, Weight):
            return value.replace(w=one(value.w, sharding))
        return walk.run.constrain(value, sharding)

    shardings = params.get(which) or [None] * len(values)
    return [
        one(value, sharding) if _jax.is_sharding(sharding) else value
        for value, sharding in zip(values, shardings, strict=True)
    ]


@rule("closed_call", "core_call", "call", reads=("call_jaxpr",), carries=("name",))
def call(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    return walk.inside(eqn)(eqn.params["call_jaxpr"], list(operands))


@rule("custom_vmap_call", reads=("call",), carries=("rule", "in_tree", "out_tree"))
def custom_vmap_call(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """The body itself, which can be mapped as any other."""
    return walk.inside(eqn)(eqn.params["call"], list(operands))


@rule(
    "checkpoint",
    "remat",
    "remat2",
    reads=("jaxpr", "prevent_cse", "policy"),
    carries=("differentiated",),
)
def checkpoint(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """Rematerialisation of the lifted body, under the model's own policy."""

    def body(*operands):
        return walk.inside(eqn)(eqn.params["jaxpr"], list(operands))

    options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    return walk.run.checkpoint(body, operands, **options)


@rule(
    "scan",
    reads=("jaxpr", "length", "reverse", "unroll"),
    carries=("num_consts", "num_carry", "ft_in", "ft_out", "linear", "_split_transpose"),
)
def scan(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """A weight scanned along its stack gives each step its own factors."""
    jaxpr, _ = _jax.open_jaxpr(eqn.params["jaxpr"])
    counts = _jax.scan_counts(eqn)
    consts, carry, xs = _jax.partition(list(operands), *counts)
    kept = _handed_on(jaxpr.invars[counts[0] : sum(counts)], jaxpr.outvars, carry)
    changing, rejoin = _changing(walk, eqn, carry, kept)
    scanned, steps_of = zip(*map(_steps, xs), strict=True) if xs else ((), ())
    inside = walk.inside(eqn, times=eqn.params["length"])

    def body(changing, scanned):
        step, *scanned = scanned
        slices = [build(part) for build, part in zip(steps_of, scanned, strict=True)]
        operands = [*consts, *rejoin(changing), *slices]
        if step is not None:
            operands = fold_in(operands, step)
        results = inside(eqn.params["jaxpr"], operands)
        carried, ys = _jax.partition(results, counts[1])
        carried = [value for value, keep in zip(carried, kept, strict=True) if not keep]
        carried = inside.merged(carried, eqn, "carried from step to step, changed")
        ys = [inside.merge(y, eqn, "returned by a step") if _is_stored(y) else y for y in ys]
        return carried, ys

    steps = jnp.arange(eqn.params["length"]) if _drops(operands) else None
    changing, ys = walk.run.scan(
        body,
        changing,
        (steps, *scanned),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    shapes = [var.aval.shape for var in eqn.outvars[counts[1] :]]
    return [*rejoin(changing), *map(_of_all_steps, ys, shapes)]


@rule("while", reads=("cond_jaxpr", "cond_nconsts", "body_jaxpr", "body_nconsts"))
def while_loop(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """Weights are constants of the loop, or are carried unchanged, which is the same."""
    params = eqn.params
    cond_consts, body_consts, carry = _jax.partition(
        list(operands), params["cond_nconsts"], params["body_nconsts"]
    )
    body_jaxpr, _ = _jax.open_jaxpr(params["body_jaxpr"])
    kept = _handed_on(body_jaxpr.invars[params["body_nconsts"] :], body_jaxpr.outvars, carry)
    changing, rejoin = _changing(walk, eqn, carry, kept)
    inside = walk.inside(eqn)

    def at(step, values):
        return values if step is None else fold_in(values, step)

    def cond(state):
        step, changing = state
        [proceed] = inside(params["cond_jaxpr"], at(step, [*cond_consts, *rejoin(changing)]))
        return proceed

    def body(state):
        step, changing = state
        results = inside(params["body_jaxpr"], at(step, [*body_consts, *rejoin(changing)]))
        results = [value for value, keep in zip(results, kept, strict=True) if not keep]
        results = walk.merged(results, eqn, "carried from step to step, changed")
        return None if step is None else step + 1, results

    steps = jnp.int32(0) if _drops(operands) else None
    return rejoin(walk.run.while_loop(cond, body, (steps, changing))[1])


@rule("cond", reads=("branches",), carries=("linear", "name", "branches_platforms"))
def cond(walk: Walk, eqn: Any, index: Any, *operands: Any) -> list[Any]:
    """Each branch uses the weights that it uses; a weight of one form in all of them comes out."""
    inside = walk.inside(eqn)
    bodies = [functools.partial(_branch, inside, jaxpr) for jaxpr in eqn.params["branches"]]
    alike: list[Weight | None] = [None] * len(eqn.outvars)
    if any(_hands_out(jaxpr, operands) for jaxpr in eqn.params["branches"]):
        each = [walk.run.shapes(body, operands) for body in bodies]
        alike = [_alike(values) for values in zip(*each, strict=True)]

    def plain(body):
        return lambda *operands: [
            value if form is not None else inside.merge(value, eqn, "returned from a branch")
            for value, form in zip(body(*operands), alike, strict=True)
        ]

    platforms = eqn.params.get("branches_platforms")
    results = walk.run.switch(index, list(map(plain, bodies)), platforms, operands)
    return [
        value if form is None else _from_all(value, form)
        for value, form in zip(results, alike, strict=True)
    ]


def _alike(values: Sequence[Any]) -> Weight | None:
    """The form that a result has in all branches, with the origins of each, if it is a weight."""
    if not all(isinstance(value, Weight) for value in values):
        return None
    forms = [
        (jax.tree.structure(v), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(v)])
        for v in values
    ]
    if any(form != forms[0] for form in forms):
        return None
    terms = [
        dataclasses.replace(each[0], origins=tuple(o for term in each for o in term.origins))
        for each in zip(*(value.terms for value in values), strict=True)
    ]
    return values[0].replace(terms=tuple(terms))


def _from_all(value: Weight, form: Weight) -> Weight:
    """A weight that came out of one of several branches, as one of all their leaves."""
    pairs = zip(value.terms, form.terms, strict=True)
    return value.replace(
        terms=tuple(dataclasses.replace(term, origins=other.origins) for term, other in pairs)
    )


def _branch(inside: Walk, jaxpr: Any, *operands: Any) -> list[Any]:
    return inside(jaxpr, list(operands))


def _hands_out(jaxpr: Any, operands: Sequence[Any]) -> bool:
    """Whether a weight may come out of a branch: by operations that only move it."""
    jaxpr, _ = _jax.open_jaxpr(jaxpr)
    weights = {var for var, v in zip(jaxpr.invars, operands, strict=True) if isinstance(v, Weight)}
    for eqn in jaxpr.eqns:
        read = [var for var in eqn.invars if isinstance(var, _jax.Var)]
        moves = eqn.primitive.name in RULES and eqn.primitive.name not in PRODUCTS
        if moves and not weights.isdisjoint(read):
            weights.update(eqn.outvars)
    return not weights.isdisjoint(v for v in jaxpr.outvars if isinstance(v, _jax.Var))


def _is_stored(value: Any) -> bool:
    """Whether it is a weight that can't be put together again of what all steps return."""
    return isinstance(value, Weight) and isinstance(value.w, Base) and not value.w.stacks


def _handed_on(inner: list[Any], results: list[Any], carry: list[Any]) -> list[bool]:
    """Which weights a loop only hands on: they are constants of it."""
    return [
        isinstance(value, Weight) and before is after
        for before, after, value in zip(inner, results, carry, strict=False)
    ]


def _changing(walk: Walk, eqn: Any, carry: list[Any], kept: list[bool]):
    """The carry that really changes, and how to put the whole together again."""
    changing = [value for value, keep in zip(carry, kept, strict=True) if not keep]
    changing = walk.merged(changing, eqn, "carried from step to step, changed")

    def rejoin(changing):
        rest = iter(changing)
        return [value if keep else next(rest) for value, keep in zip(carry, kept, strict=True)]

    return changing, rejoin


def _steps(value: Any):
    """What of a value is scanned along its first dimension, and how a step puts it together."""
    if not isinstance(value, Weight):
        return value, lambda part: part
    value = value.filled([0])
    movement = without({0}, value.ndim, stacked=frozenset([0]))
    w = value.w
    parts, structure = jax.tree.flatten((value.terms, value.gain), is_leaf=_is_factor)
    stacked = [at for at, part in enumerate(parts) if _is_factor(part) and 0 in part.dims]
    scanned = [jnp.moveaxis(parts[at].array, parts[at].dims.index(0), 0) for at in stacked]
    whole, step_of = w.steps(movement) if isinstance(w, Base) else (w, lambda part: part)

    def lowered(factor: Factor) -> Factor:
        return Factor(factor.array, tuple(d if d == RANK else d - 1 for d in factor.dims))

    def build(part):
        base, arrays = part
        filled = list(parts)
        for at, array in zip(stacked, arrays, strict=True):
            filled[at] = Factor(array, tuple(dim for dim in parts[at].dims if dim != 0))
        terms, gain = jax.tree.unflatten(structure, filled)
        return value.replace(terms=terms, gain=gain).moved(step_of(base), movement, lowered)

    return (whole, scanned), build


def _is_factor(part: Any) -> bool:
    return isinstance(part, Factor)


def _of_all_steps(value: Any, shape: tuple[int, ...]) -> Any:
    """The results of all steps as one weight with a new first dimension."""
    if not isinstance(value, Weight):
        return value
    movement = with_new(0, len(shape) - 1)
    w = value.w.of_all_steps(shape, movement) if isinstance(value.w, Base) else value.w

    def shifted(factor: Factor) -> Factor:
        return Factor(factor.array, (0, *(RANK if d == RANK else d + 1 for d in factor.dims)))

    def whole(term: Term) -> Term:
        filter_ = None if term.filter is None else term.filter.of_all_steps()
        return dataclasses.replace(term, filter=filter_)

    return value.moved(w, movement, shifted).map_terms(whole)


def _drops(values: Any) -> bool:
    return any(isinstance(value, Weight) and value.drops for value in values)
