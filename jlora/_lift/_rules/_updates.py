"""Parts of a weight written anew: ``w.at[i].set(x)``, ``.add(x)``, `lax.dynamic_update_slice`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from jlora._lift._decline import Decline
from jlora._lift._movement import relabel, unmoved, with_new
from jlora._lift._operands import bases, gains, refuse_form, refuse_gain
from jlora._lift._term import Term
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Weight, put_together
from jlora._lowrank import Factor

# Writes a part into an array along one of its axes.
Write = Callable[[Any, Any, int], Any]


@rule("dynamic_update_slice")
def dynamic_update_slice(walk: Walk, eqn: Any, value: Any, part: Any, *starts: Any) -> list[Any]:
    if any(isinstance(start, Weight) for start in starts):
        raise Decline("an index that is itself adapted")
    dims = [dim for dim, size in enumerate(part.shape) if size != value.shape[dim]]
    if len(dims) != 1:
        raise Decline("an update along several dimensions, or along none")
    [dim] = dims

    def write(array: Any, part: Any, axis: int) -> Any:
        where = starts[dim]  # clipped, as in the model: it was counted from the end before
        return lax.dynamic_update_slice_in_dim(
            array, part, where, axis, allow_negative_indices=False
        )

    operands = [*bases((value, part)), *starts]
    w = walk.run.join(walk, eqn, operands, [unmoved(value.ndim)] * len(operands), None)
    return [_updated(w, value, part, dim, part.shape[dim], write)]


@rule(
    "scatter",
    reads=("dimension_numbers", "mode"),
    carries=("indices_are_sorted", "unique_indices", "update_jaxpr", "update_consts"),
)
def scatter(walk: Walk, eqn: Any, value: Any, indices: Any, part: Any) -> list[Any]:
    """Whole slices at one place along one dimension."""
    numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    if isinstance(indices, Weight):
        raise Decline("an index that is itself adapted")
    dims = numbers.scatter_dims_to_operand_dims
    inserted = numbers.inserted_window_dims
    if (
        len(dims) != 1
        or inserted not in ((), dims)
        or indices.shape != (1,)
        or numbers.operand_batching_dims
    ):
        raise Decline("a scatter of other than whole slices at one place of one dimension")
    [dim] = dims
    kept = [d for d in range(value.ndim) if d not in inserted]
    sizes = dict(zip(kept, (part.shape[d] for d in numbers.update_window_dims), strict=True))
    if any(sizes[d] != value.shape[d] for d in kept if d != dim) or sizes.get(dim, 1) != 1:
        raise Decline("a scatter of other than whole slices at one place of one dimension")

    def write(array: Any, part: Any, axis: int) -> Any:
        where = (slice(None),) * axis + (indices,)
        return array.at[where].set(part, mode=mode, wrap_negative_indices=False)

    movements = [unmoved(value.ndim)] * 3
    if inserted:
        movements[2] = with_new(dim, value.ndim - 1)
    w = walk.run.join(walk, eqn, bases((value, indices, part)), movements, None)
    if isinstance(part, Weight) and inserted:  # the dimension with size 1
        part = part.moved(part.w, movements[2], lambda f: relabel(f, movements[2].new))
    return [_updated(w, value, part, dim, 1, write)]


@rule(
    "scatter-add",
    "scatter-sub",
    carries=(
        "dimension_numbers",
        "mode",
        "indices_are_sorted",
        "unique_indices",
        "update_jaxpr",
        "update_consts",
    ),
)
def scatter_add(walk: Walk, eqn: Any, value: Any, indices: Any, part: Any) -> list[Any]:
    """What is added to places of a weight is added to W: the terms stay as they are."""
    refuse_form(value)
    refuse_gain(value)
    if not isinstance(value, Weight) or any(isinstance(each, Weight) for each in (indices, part)):
        raise Decline("an adapted weight is added to places of an array")
    if value.rows:
        raise Decline("rows are written")
    w = walk.run.join(walk, eqn, bases((value, indices, part)), [unmoved(value.ndim)] * 3, None)
    return [put_together(w, value.terms)]


def _updated(w: Any, value: Any, part: Any, dim: int, size: int, write: Write) -> Weight:
    """The old terms without what was written over, and the new ones at its place."""
    refuse_form(value, part)
    weights = [each for each in (value, part) if isinstance(each, Weight)]
    if any(each.rows for each in weights):
        raise Decline("rows are written")  # activations from here on
    shape = w.shape
    part_shape = (*shape[:dim], size, *shape[dim + 1 :])
    old = value.terms if isinstance(value, Weight) else ()
    new = part.terms if isinstance(part, Weight) else ()
    terms = [
        *(_cleared(term.filled([dim], shape), dim, size, shape, write) for term in old),
        *(_placed(term.filled([dim], part_shape), dim, size, shape, write) for term in new),
    ]
    return put_together(w, terms, _gain(value, part, dim, size, shape, write))


def _gain(
    value: Any, part: Any, dim: int, size: int, shape: tuple[int, ...], write: Write
) -> Factor | None:
    """The magnitudes of what is there afterwards; 1 where there are none."""
    if (together := gains((value, part), [dim])) is None:
        return None
    for each in (value, part):
        if isinstance(each, Weight) and any(term.covers(dim) not in _STACK for term in each.terms):
            refuse_gain(value, part)
    order, arrays = together
    whole, new = (
        jnp.broadcast_to(array.astype(jnp.float32), [n if d == dim else shape[d] for d in order])
        for array, n in zip(arrays, (shape[dim], size), strict=True)
    )
    return Factor(write(whole, new, order.index(dim)), order)


_STACK = ((True, True), (False, False))


def _cleared(term: Term, dim: int, size: int, shape: tuple[int, ...], write: Write) -> Term:
    """The term with zeros where something else was written."""
    name = "b" if term.covers(dim) == (False, True) else "a"
    factor = _with(getattr(term, name), dim, shape[dim])
    axis = factor.dims.index(dim)
    zeros = jnp.zeros([size if k == axis else n for k, n in enumerate(factor.array.shape)])
    cleared = write(factor.array, zeros.astype(factor.array.dtype), axis)
    return dataclasses.replace(term, **{name: Factor(cleared, factor.dims)})


def _placed(term: Term, dim: int, size: int, shape: tuple[int, ...], write: Write) -> Term:
    """The term at the place that it was written to, and zeros elsewhere."""
    name = "b" if term.covers(dim) == (False, True) else "a"

    def placed(factor: Factor) -> Factor:
        factor = _with(factor, dim, size)
        axis = factor.dims.index(dim)
        sizes = [shape[dim] if k == axis else n for k, n in enumerate(factor.array.shape)]
        zeros = jnp.zeros(sizes, factor.array.dtype)
        return Factor(write(zeros, factor.array, axis), factor.dims)

    def one(factor: Factor) -> Factor:
        return placed(factor) if dim in factor.dims else factor

    return dataclasses.replace(term, **{name: _with(getattr(term, name), dim, size)}).map(one)


def _with(factor: Factor, dim: int, size: int) -> Factor:
    """The factor with a dimension along which it repeated."""
    if dim in factor.dims:
        return factor
    return Factor(jnp.broadcast_to(factor.array, (size, *factor.array.shape)), (dim, *factor.dims))
