"""Products of a weight: the base product, and two thin ones beside it for each term."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora import _placement
from jlora._lift import _jax
from jlora._lift._decline import Decline
from jlora._lift._sums import ProductSum
from jlora._lift._term import Term, padded
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Weight, gained
from jlora._lowrank import RANK, Factor, along, scaled

Labels = tuple[int, ...]

FACTORED = "the base product and two thin ones"


@rule(
    "dot_general",
    reads=("dimension_numbers", "precision", "preferred_element_type"),
    carries=("out_sharding",),
)
def dot_general(walk: Walk, eqn: Any, lhs: Any, rhs: Any) -> list[Any]:
    """x W + (x A) B, whatever the layout: an einsum of three operands over labelled dimensions.

    A gain is the result's, or x's where its dimensions are contracted.
    """
    (contracted, kept) = _sides(eqn.params["dimension_numbers"], lhs, rhs)
    for side, value in enumerate((lhs, rhs)):
        if isinstance(value, Weight):
            walk.run.contracts(value, contracted[side], kept[side])
    if isinstance(lhs, Weight) and isinstance(rhs, Weight):
        lhs, rhs = walk.run.one_of_two(walk, eqn, lhs, rhs)
    lhs_labels, rhs_labels, out_labels = _label(eqn.params["dimension_numbers"], lhs, rhs)
    on_left = isinstance(lhs, Weight)
    value, w_labels = (lhs, lhs_labels) if on_left else (rhs, rhs_labels)
    x, x_labels = (rhs, rhs_labels) if on_left else (lhs, lhs_labels)
    dims = {label: dim for dim, label in enumerate(w_labels)}
    x_dims, out_dims = (tuple(map(dims.get, labels)) for labels in (x_labels, out_labels))
    gain_last = _gain_last(value, x_dims, out_dims)
    if not gain_last:
        x = value.gained(x, x_dims)
    beside = walk.beside(x) if value.thin else x  # first, so that its gradient is added last
    base = value.multiply(
        lambda w, x: walk.bind(eqn, [w, x] if on_left else [x, w])[0], x, kept=out_dims
    )
    sizes = dict(zip(x_labels, x.shape, strict=True)) | dict(
        zip(w_labels, value.shape, strict=True)
    )
    thins, flops = [], []
    for term in value.thin:
        seen, seen_labels = _filtered(term, beside, x_labels, w_labels, value.shape)
        thin, cost = _thin(
            seen, seen_labels, term, w_labels, base, out_labels, sizes, value.dtype, eqn.params
        )
        thins.append(thin)
        flops.append(cost)
    report_factored(walk, eqn, value, base, 2 * math.prod(_jax.counted(sizes.values())), flops)
    return [ProductSum(base, tuple(thins), value.gain_along(out_dims) if gain_last else None)]


def _filtered(
    term: Term, x: jax.Array, x_labels: Labels, w_labels: Labels, shape: tuple[int, ...]
) -> tuple[jax.Array, Labels]:
    """What the term gets of an activation, once for each place along which its filter differs."""
    if term.filter is None:
        return x, x_labels
    more = [dim for dim in sorted(term.filter.dims) if w_labels[dim] not in x_labels]
    if more:
        x = jnp.broadcast_to(x, (*(shape[dim] for dim in more), *x.shape))
        x_labels = (*(w_labels[dim] for dim in more), *x_labels)
    dims = {label: dim for dim, label in enumerate(w_labels)}
    return term.filter(x, tuple(map(dims.get, x_labels))), x_labels


def _gain_last(value: Weight, x_dims: tuple[int | None, ...], out_dims: tuple[int | None, ...]):
    """Whether the gain multiplies the result (True) or the activation (False)."""
    varies = set() if value.gain is None else set(value.gain.dims)
    if varies <= set(out_dims):
        return True
    if varies <= set(x_dims):
        return False
    raise Decline("the weight's magnitudes lie on both sides of the product")


def report_factored(
    walk: Walk, eqn: Any, value: Weight, result: Any, base_flops: int, thin_flops: Sequence[int]
) -> None:
    """Tells of a product that was computed without forming the merged weight, or by its form."""
    if value.form is not None:
        costs = [(2 * value.size * term.rank + value.size, value.size * value.dtype.itemsize)
                 for term in value.terms]  # fmt: skip
        return walk.run.report(walk, value, eqn, value.why_formed, base_flops, costs, how="formed")
    size = math.prod(_jax.counted(result.shape))
    written = size * result.dtype.itemsize
    costs = []
    for term, flops in zip(value.terms, thin_flops, strict=True):
        read = sum(f.array.size * f.array.dtype.itemsize for f in (term.a, term.b))
        costs.append((flops + size, read + written / len(value.terms)))
    walk.run.report(walk, value, eqn, FACTORED, base_flops, costs)


def _sides(dimension_numbers: Any, lhs: Any, rhs: Any) -> tuple[list[Any], list[Any]]:
    """For each operand the dimensions that are contracted, and those that the result keeps."""
    contracted, batch = dimension_numbers
    kept = [
        [dim for dim in range(len(value.shape)) if dim not in {*contracted[side], *batch[side]}]
        for side, value in enumerate((lhs, rhs))
    ]
    return list(contracted), kept


def _label(dimension_numbers, lhs, rhs) -> tuple[Labels, Labels, Labels]:
    """One label a dimension, shared where the two operands meet; the result's order."""
    (lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch) = dimension_numbers
    fresh = itertools.count()
    lhs_labels = [next(fresh) for _ in range(lhs.ndim)]
    rhs_labels = [next(fresh) for _ in range(rhs.ndim)]
    for left, right in zip(
        (*lhs_contracted, *lhs_batch), (*rhs_contracted, *rhs_batch), strict=True
    ):
        rhs_labels[right] = lhs_labels[left]
    batch = [lhs_labels[dim] for dim in lhs_batch]
    lhs_free = [label for label in lhs_labels if label not in rhs_labels]
    rhs_free = [label for label in rhs_labels if label not in lhs_labels]
    return tuple(lhs_labels), tuple(rhs_labels), (*batch, *lhs_free, *rhs_free)


def _thin(
    x: jax.Array,
    x_labels: Labels,
    term: Term,
    w_labels: Labels,
    base: jax.Array,
    out_labels: Labels,
    sizes: dict[int, int],
    dtype: Any,
    params: dict[str, Any],
) -> tuple[jax.Array, int]:
    """x A B in the cheapest order for these shapes, and its FLOPs; it will be added to ``base``.

    Cherniuk et al. 2023 ("Run LoRA Run", arXiv 2312.03415) compare the orders; all are equal.
    """
    rank_label = max(sizes) + 1
    whole = sizes
    sizes = sizes | {rank_label: term.rank}
    window = {w_labels[dim]: (start, size) for dim, start, size in term.window}
    for label, (start, size) in window.items():
        sizes[label] = size
        if label in x_labels:
            x = lax.slice_in_dim(x, start, start + size, axis=x_labels.index(label))

    def labelled(factor: Factor) -> Factor:
        return Factor(
            factor.array,
            tuple(rank_label if dim == RANK else w_labels[dim] for dim in factor.dims),
        )

    def operand(factor: Factor) -> tuple[jax.Array, Labels]:
        return factor.array.astype(dtype), labelled(factor).dims

    gain = None if term.gain is None else labelled(term.gain)
    if gain is not None and not set(gain.dims) <= set(out_labels):
        if not set(gain.dims) <= set(x_labels):
            raise Decline("a product's magnitudes lie on both sides of it")
        x, gain = gained(x, along(gain, x_labels)), None
    present = None if term.present is None else labelled(term.present)
    if present is not None and set(present.dims) <= set(x_labels):
        x = jnp.where(along(present, x_labels), x, jnp.zeros((), x.dtype))
        present = None
    scaling = None if term.scaling is None else labelled(term.scaling)
    x_operand, a_operand, b_operand = (x, x_labels), operand(term.a), operand(term.b)
    orders = [
        (x_operand, a_operand, b_operand),
        (x_operand, b_operand, a_operand),
        (a_operand, b_operand, x_operand),
    ]
    costs = [_cost(order, out_labels, sizes) for order in orders]
    (p, p_labels), (q, q_labels), (last, last_labels) = orders[costs.index(min(costs))]
    kept = _kept(p_labels, q_labels, {*last_labels, *out_labels})
    if rank_label not in kept:  # A B is formed
        p, p_labels = scaled(p, p_labels, scaling)
        kept = _kept(p_labels, q_labels, {*last_labels, *out_labels})
    first = _contract(p, p_labels, q, q_labels, kept, params)
    if rank_label in kept:
        first, kept = scaled(first, kept, scaling)
    if jnp.issubdtype(first.dtype, jnp.floating):
        first = first.astype(last.dtype)  # it was accumulated in what the model prefers
    last = _placement.following(last, last_labels, base, out_labels)
    present_labels = tuple(label for label in out_labels if label in {*kept, *last_labels})
    joined = present_labels
    if _placement.on_one_device(first, last):
        first, kept, joined = _joined(first, kept, last_labels, present_labels)
    thin = _contract(first, kept, last, last_labels, joined, params)
    if joined != present_labels:
        thin = thin.reshape([sizes[label] for label in present_labels])
    shape = tuple(sizes[label] for label in out_labels)
    kept_dims = tuple(dim for dim, label in enumerate(out_labels) if label in present_labels)
    thin = lax.broadcast_in_dim(thin, shape, kept_dims) if thin.shape != shape else thin
    if gain is not None:
        thin = gained(thin, along(gain, out_labels))
    if present is not None:
        if not set(present.dims) <= set(out_labels):
            raise Decline("rows that an index may have missed are contracted in part")
        thin = jnp.where(along(present, out_labels), thin, jnp.zeros((), thin.dtype))
    thin = padded(thin, tuple(whole[label] for label in out_labels), _windows(window, out_labels),
                  range(len(out_labels)))  # fmt: skip
    return thin, min(costs)


def _windows(window: dict[int, tuple[int, int]], labels: Labels) -> dict[int, tuple[int, int]]:
    """The windows by the places of their labels."""
    return {labels.index(label): part for label, part in window.items() if label in labels}


def _kept(p: Labels, q: Labels, needed: set[int]) -> Labels:
    return tuple(label for label in dict.fromkeys((*p, *q)) if label in needed)


def _cost(order, out_labels: Labels, sizes: dict[int, int]) -> int:
    """The FLOPs of two products, one after the other."""
    (_, p), (_, q), (_, last) = order
    kept = _kept(p, q, {*last, *out_labels})
    first = 2 * math.prod(_jax.counted(sizes[label] for label in {*p, *q}))
    return first + 2 * math.prod(_jax.counted(sizes[label] for label in {*kept, *last}))


def _contract(
    x: jax.Array,
    x_labels: Labels,
    y: jax.Array,
    y_labels: Labels,
    out: Labels,
    params: dict[str, Any],
) -> jax.Array:
    """The product of two labelled arrays, its dimensions in the order of ``out``."""
    x, x_labels = _sum_unshared(x, x_labels, {*y_labels, *out})
    y, y_labels = _sum_unshared(y, y_labels, {*x_labels, *out})
    free = [label for label in out if (label in x_labels) != (label in y_labels)]
    if free and free[0] in y_labels:  # so that the result needs no transpose where it can
        x, x_labels, y, y_labels = y, y_labels, x, x_labels
    shared = [label for label in x_labels if label in y_labels]
    batch = [label for label in out if label in shared]
    contracted = [label for label in shared if label not in out]

    def dims(labels: Labels, chosen: Sequence[int]) -> tuple[int, ...]:
        return tuple(labels.index(label) for label in chosen)

    order = (
        *batch,
        *(label for label in x_labels if label not in shared),
        *(label for label in y_labels if label not in shared),
    )
    result = lax.dot_general(
        x,
        y,
        (
            (dims(x_labels, contracted), dims(y_labels, contracted)),
            (dims(x_labels, batch), dims(y_labels, batch)),
        ),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
        out_sharding=_placement.out_sharding(x, x_labels, y, y_labels, order),
    )
    if order != out:
        result = lax.transpose(result, tuple(order.index(label) for label in out))
    return result


def _joined(
    x: jax.Array, labels: Labels, last: Labels, present: Labels
) -> tuple[jax.Array, Labels, Labels]:
    """x A with the dimensions that B lacks as one, and with it the result's.

    So B's gradient contracts one dimension, and the activation's gradient as it lies. With several,
    XLA transposes all of it first: on CPU a fifth of a language model's train step.
    """
    own = tuple(label for label in labels if label not in last)
    if len(own) < 2 or not (_side_by_side(own, labels) and _side_by_side(own, present)):
        return x, labels, present
    at = labels.index(own[0])
    size = math.prod(x.shape[at : at + len(own)])
    x = x.reshape(*x.shape[:at], size, *x.shape[at + len(own) :])

    def once(labels: Labels) -> Labels:
        return tuple(label for label in labels if label not in own[1:])

    return x, once(labels), once(present)


def _side_by_side(chosen: Labels, labels: Labels) -> bool:
    at = labels.index(chosen[0])
    return labels[at : at + len(chosen)] == chosen


def _sum_unshared(x: jax.Array, labels: Labels, needed: set[int]) -> tuple[jax.Array, Labels]:
    """Sum over the dimensions that neither the other operand nor the result has."""
    alone = tuple(dim for dim, label in enumerate(labels) if label not in needed)
    if not alone:
        return x, labels
    return x.sum(alone), tuple(label for label in labels if label in needed)
