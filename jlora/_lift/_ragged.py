"""Ragged products that `jax.vmap` can batch, which JAX's own can't unless all of it is batched.

With one matrix for each group shared by the whole batch, the rows of all are sorted by group and go
through one ragged product: nothing of the matrices' size is made for each member of the batch.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import custom_batching, lax

from jlora import _placement

_OVER_ROWS = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])


def ragged_dot(
    rows: jax.Array,
    matrices: jax.Array,
    group_sizes: jax.Array,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Each row (rows, in) through its group's matrix (groups, in, out): `jax.lax.ragged_dot`.

    Gradients are those of rows and matrices; under jit one that nothing reads is not computed.
    """
    operands = _placement.varying_alike(rows, matrices, group_sizes)
    return _product(precision, preferred_element_type)(*operands)


@functools.cache
def _product(precision: Any, preferred: Any):
    options = {"precision": precision, "preferred_element_type": preferred}

    @custom_batching.custom_vmap
    def forward(rows, matrices, sizes):
        return lax.ragged_dot(rows, matrices, sizes, **options)

    @forward.def_vmap
    def _(count, batched, rows, matrices, sizes):
        if batched[1]:
            rows, _, sizes = _all_batched(count, batched, rows, matrices, sizes)
            return jax.vmap(functools.partial(lax.ragged_dot, **options))(
                rows, matrices, sizes
            ), True
        rows, _, sizes = _all_batched(count, (batched[0], True, batched[2]), rows, None, sizes)
        order, total = _by_group(sizes, rows.shape[1])
        flat = rows.reshape(-1, rows.shape[-1])
        result = forward(flat[order], matrices, total)
        return result[jnp.argsort(order)].reshape(*rows.shape[:2], -1), True

    @custom_batching.custom_vmap
    def outer(rows, cotangent, sizes):
        return lax.ragged_dot_general(rows, cotangent, sizes, _OVER_ROWS, precision=precision)

    @outer.def_vmap
    def _(count, batched, rows, cotangent, sizes):
        rows, cotangent, sizes = _all_batched(count, batched, rows, cotangent, sizes)
        own = functools.partial(
            lax.ragged_dot_general,
            ragged_dot_dimension_numbers=_OVER_ROWS,
            precision=precision,
        )
        return jax.vmap(own)(rows, cotangent, sizes), True

    @jax.custom_vjp
    def product(rows, matrices, sizes):
        return forward(rows, matrices, sizes)

    def save(rows, matrices, sizes):
        return forward(rows, matrices, sizes), (rows, matrices, sizes)

    def back(saved, cotangent):
        rows, matrices, sizes = saved
        turned = jnp.swapaxes(matrices, 1, 2)
        to_rows = forward(cotangent.astype(turned.dtype), turned, sizes)
        to_matrices = outer(rows, cotangent.astype(rows.dtype), sizes)
        return to_rows.astype(rows.dtype), to_matrices.astype(matrices.dtype), None

    product.defvjp(save, back)
    return product


def _all_batched(count: int, batched: Any, *operands: Any) -> tuple[Any, ...]:
    return tuple(
        operand
        if is_batched or operand is None
        else jnp.broadcast_to(operand, (count, *operand.shape))
        for operand, is_batched in zip(operands, batched, strict=True)
    )


def _by_group(sizes: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """The order of the rows of a whole batch by their groups, and each group's size in it.

    Rows that are in no group come last.
    """
    ends = jnp.cumsum(sizes, axis=1)
    places = jnp.arange(rows, dtype=ends.dtype)
    groups = jax.vmap(lambda ends: jnp.searchsorted(ends, places, side="right"))(ends)
    return jnp.argsort(groups.reshape(-1), stable=True), sizes.sum(0)
