"""Ragged products of experts: the base one, and two thin ones beside it for each term."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._lift import _jax
from jlora._lift._decline import Decline
from jlora._lift._ragged import ragged_dot
from jlora._lift._rules._products import report_factored
from jlora._lift._term import Term
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Weight
from jlora._lowrank import RANK, along, scaled


@rule(
    "ragged_dot_general",
    reads=("ragged_dot_dimension_numbers", "precision", "preferred_element_type", "group_offset"),
    carries=("out_sharding",),
)
def ragged_dot_general(walk: Walk, eqn: Any, x: Any, kernel: Any, group_sizes: Any) -> list[Any]:
    """Rows sorted by expert, each through its own expert's W, A and B."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, batch), groups = numbers.dot_dimension_numbers, numbers.rhs_group_dimensions
    for side, value in enumerate((x, kernel)):
        if isinstance(value, Weight):
            apart = {*contracted[side], *batch[side], *(groups if side == 1 else ())}
            kept = [dim for dim in range(value.ndim) if dim not in apart]
            walk.run.contracts(value, contracted[side], kept)
    (x_contracted, w_contracted), (x_batch, _) = numbers.dot_dimension_numbers
    if isinstance(x, Weight) or isinstance(group_sizes, Weight):
        raise Decline("the weight is not the grouped operand")
    if x_batch or x.ndim != 2 or len(groups) != 1 or len(w_contracted) != 1:
        raise Decline("a ragged product of other than rows with one matrix for each group")
    if list(numbers.lhs_ragged_dimensions) == list(x_contracted):
        raise Decline("a ragged product over the contracted dimension")
    if eqn.params["group_offset"] is not None:
        raise Decline("a ragged product that starts at another group than the first")
    [group], [inner] = groups, w_contracted
    [outer] = set(range(3)) - {group, inner}
    kernel = kernel.filled(range(kernel.ndim))
    if any(term.filter is not None and group in term.filter.dims for term in kernel.thin):
        raise Decline("experts with dropout of different rates")
    pairs = [_first_and_second(term, group, inner, outer) for term in kernel.thin]
    if kernel.gain is not None and set(kernel.gain.dims) != {group, outer}:
        raise Decline("a ragged product with magnitudes that are not one for each output")
    rows_count, dtype = x.shape[1 - x_contracted[0]], kernel.dtype
    options = {name: eqn.params[name] for name in ("precision", "preferred_element_type")}
    turned = (group, inner, outer)

    def base_product(w: Any, x: Any, group_sizes: Any) -> Any:
        if not isinstance(w, jax.Array):  # it is only looked at
            return walk.bind(eqn, [x, w, group_sizes])[0]
        return ragged_dot(
            _rows(x, x_contracted[0]), lax.transpose(w, turned), group_sizes, **options
        )

    base = kernel.multiply(base_product, x, group_sizes, kept=(None, outer))

    def thin(term: Term, first: jax.Array, second: jax.Array, scaling: Any) -> jax.Array:
        rows = _rows(x, x_contracted[0])
        if term.filter is not None:
            rows = term.filter(rows, (None, inner))
        hidden = ragged_dot(rows, first.astype(dtype), group_sizes, **options)
        hidden, _ = scaled(hidden, (None, RANK), scaling)
        return ragged_dot(hidden.astype(dtype), second.astype(dtype), group_sizes, **options)

    [counted] = _jax.counted([rows_count])
    flops = [2 * counted * t.rank * (kernel.shape[inner] + kernel.shape[outer])
             for t in kernel.terms]  # fmt: skip
    report_factored(
        walk, eqn, kernel, base, 2 * counted * kernel.shape[inner] * kernel.shape[outer], flops
    )
    for term, pair in zip(kernel.thin, pairs, strict=True):
        base = base + thin(term, *pair).astype(base.dtype)
    if kernel.gain is not None:  # each row has its own group's
        gain = jnp.expand_dims(along(kernel.gain, (group, outer)), 1)
        ones = jnp.ones((rows_count, 1), gain.dtype)
        base = (base * ragged_dot(ones, gain, group_sizes, precision="highest")).astype(base.dtype)
    return [base]


def _rows(x: jax.Array, contracted: int) -> jax.Array:
    """The operand as (rows, in)."""
    return x if contracted == 1 else lax.transpose(x, (1, 0))


def _first_and_second(term: Term, group: int, inner: int, outer: int):
    """The factors as (group, in, rank) and (group, rank, out), and the scaling."""
    if term.present is not None:
        raise Decline("a ragged product with weights that were looked up")
    a, b, scaling = term.parted()
    for first, second in ((a, b), (b, a)):
        if set(first.dims) == {group, inner, RANK} and set(second.dims) == {group, RANK, outer}:
            return (
                lax.transpose(first.array, tuple(map(first.dims.index, (group, inner, RANK)))),
                lax.transpose(second.array, tuple(map(second.dims.index, (group, RANK, outer)))),
                scaling,
            )
    raise Decline("an adapter that is not one for each group")
