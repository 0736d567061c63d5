"""Convolutions and ragged products of an adapted kernel: the base one, two thin ones beside it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._lift import _compat
from jlora._lift._adapted import RANK, Adapted, Factor, Opaque, Term
from jlora._lift._apart import Apart
from jlora._lift._products import report_factored
from jlora._lift._walk import Walk, rule
from jlora._lowrank import scaled

Parts = tuple[Factor, Factor, Factor | None]


@rule(
    "conv_general_dilated",
    reads=(
        "window_strides",
        "padding",
        "lhs_dilation",
        "rhs_dilation",
        "dimension_numbers",
        "feature_group_count",
        "batch_group_count",
        "precision",
        "preferred_element_type",
    ),
    carries=("out_sharding",),
)
def conv_general_dilated(walk: Walk, eqn: Any, x: Any, kernel: Any) -> list[Any]:
    """x * W + (x * A) B: A convolves into ``rank`` channels, B mixes those into the outputs."""
    if isinstance(x, Adapted):
        raise Opaque("the weight is the input of a convolution")
    if eqn.params["batch_group_count"] != 1:
        raise Opaque("a convolution with groups in the batch")
    output, *inputs = eqn.params["dimension_numbers"].rhs_spec
    groups = eqn.params["feature_group_count"]
    parted = [_convolved_and_mixed(term, output, inputs) for term in kernel.terms]
    out = eqn.outvars[0].aval
    base_flops = 2 * out.size * math.prod(kernel.shape[dim] for dim in inputs)
    places = out.size // kernel.shape[output]  # batch and positions
    flops = sum(
        2 * places * term.rank * (groups * math.prod(kernel.shape[d] for d in inputs) + out_size)
        for term, out_size in ((term, kernel.shape[output]) for term in kernel.terms)
    )
    if flops > base_flops + 2 * kernel.w.size * sum(term.rank for term in kernel.terms):
        raise Opaque("the kernel is so small (depthwise?) that merging it costs less")
    if kernel.gain is not None and {*kernel.gain.dims} != {output, RANK}:
        raise Opaque("a convolution with magnitudes that are not one for each output channel")
    base = kernel.multiply_base(lambda w, x: _compat.bind(eqn, [x, w])[0], x)
    x = kernel.filtered(x, (None,) * x.ndim)
    thins = (_thin(x, parts, kernel, eqn.params) for parts in parted)
    report_factored(walk, eqn, kernel, base, base_flops, flops)
    channel = eqn.params["dimension_numbers"].out_spec[1]
    dims = tuple(output if dim == channel else None for dim in range(base.ndim))
    return [Apart(base, tuple(thins), kernel.gain_along(dims))]


def _convolved_and_mixed(term: Term, output: int, inputs: list[int]) -> Parts:
    """Which factor has the inputs and the window, which the output channels; and the scaling."""
    if term.window:
        raise Opaque("a convolution with a kernel that was concatenated")
    a, b, scaling = term.parted()
    for convolved, mixed in ((a, b), (b, a)):
        if output not in convolved.dims and set(mixed.dims) == {output, RANK}:
            return convolved, mixed, scaling
    raise Opaque("a convolution whose window is not all on one side of the adapter")


def _thin(x: jax.Array, parts: Parts, kernel: Adapted, params: dict[str, Any]) -> jax.Array:
    convolved, mixed, scaling = parts
    numbers = params["dimension_numbers"]
    output = numbers.rhs_spec[0]
    groups = params["feature_group_count"]
    # A as a kernel: the rank stands where the output channels stood; each group has all of it.
    missing = [d for d in range(kernel.ndim) if d not in convolved.dims and d != output]
    array = jnp.expand_dims(convolved.array, tuple(range(-len(missing), 0)))
    order = [*(output if dim == RANK else dim for dim in convolved.dims), *missing]
    array = lax.transpose(array, tuple(order.index(dim) for dim in range(kernel.ndim)))
    rank = array.shape[output]
    array = jnp.broadcast_to(
        array, tuple(rank if d == output else n for d, n in enumerate(kernel.shape))
    )
    array = jnp.concatenate([array] * groups, axis=output).astype(kernel.dtype)
    hidden = lax.conv_general_dilated(
        x,
        array,
        window_strides=params["window_strides"],
        padding=params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        dimension_numbers=numbers,
        feature_group_count=groups,
        precision=params["precision"],
    )
    b = lax.transpose(mixed.array, (mixed.dims.index(RANK), mixed.dims.index(output)))
    b = b.astype(kernel.dtype).reshape(rank, groups, -1)
    channel = numbers.out_spec[1]
    hidden = jnp.moveaxis(hidden, channel, -1)
    hidden = hidden.reshape(*hidden.shape[:-1], groups, rank)
    hidden = scaled(hidden, (*(None,) * (hidden.ndim - 1), RANK), scaling)
    mixed_out = jnp.einsum("...gr,rgo->...go", hidden, b, precision=params["precision"])
    return jnp.moveaxis(mixed_out.reshape(*mixed_out.shape[:-2], -1), -1, channel)


@rule(
    "ragged_dot_general",
    reads=("ragged_dot_dimension_numbers", "precision", "preferred_element_type", "group_offset"),
    carries=("out_sharding",),
)
def ragged_dot_general(walk: Walk, eqn: Any, x: Any, kernel: Any, group_sizes: Any) -> list[Any]:
    """Rows sorted by expert, each through its own expert's W, A and B."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (x_contracted, w_contracted), (x_batch, _) = numbers.dot_dimension_numbers
    if isinstance(x, Adapted) or isinstance(group_sizes, Adapted):
        raise Opaque("the weight is not the grouped operand")
    if x_batch or x.ndim != 2 or len(numbers.rhs_group_dimensions) != 1 or len(w_contracted) != 1:
        raise Opaque("a ragged product of other than rows with one matrix for each group")
    if list(numbers.lhs_ragged_dimensions) == list(x_contracted):
        raise Opaque("a ragged product over the contracted dimension")
    [group], [contracted] = numbers.rhs_group_dimensions, w_contracted
    [kept] = set(range(3)) - {group, contracted}
    orders = [_first_and_second(term, group, contracted, kept) for term in kernel.terms]
    if kernel.gain is not None and {*kernel.gain.dims} != {group, kept, RANK}:
        raise Opaque("a ragged product with magnitudes that are not one for each output")
    base = kernel.multiply_base(
        lambda w, x, group_sizes: _compat.bind(eqn, [x, w, group_sizes])[0], x, group_sizes
    )
    rows = lax.transpose(x, (1 - x_contracted[0], x_contracted[0]))
    rows = kernel.filtered(rows, (None, contracted))
    flops = 0

    def through(rows: jax.Array, factor: jax.Array) -> jax.Array:
        return lax.ragged_dot(
            rows,
            factor.astype(kernel.dtype),
            group_sizes,
            precision=eqn.params["precision"],
            group_offset=eqn.params["group_offset"],
        )

    for term, (first, second, scaling) in zip(kernel.terms, orders, strict=True):
        thin = through(scaled(through(rows, first), (None, RANK), scaling), second)
        base = base + thin.astype(base.dtype)
        sizes = kernel.shape[contracted] + kernel.shape[kept]
        flops += 2 * rows.shape[0] * term.rank * sizes
    if kernel.gain is not None:  # each row has its own group's
        gain = lax.transpose(
            kernel.gain.array, tuple(map(kernel.gain.dims.index, (group, RANK, kept)))
        )
        ones = jnp.ones((rows.shape[0], 1), gain.dtype)
        base = (base * lax.ragged_dot(ones, gain, group_sizes, precision="highest")).astype(
            base.dtype
        )
    base_flops = 2 * rows.shape[0] * kernel.shape[contracted] * kernel.shape[kept]
    report_factored(walk, eqn, kernel, base, base_flops, flops)
    return [base]


def _first_and_second(term: Term, group: int, contracted: int, kept: int):
    """The factors as (group, in, rank) and (group, rank, out), and the scaling."""
    if term.window:
        raise Opaque("a ragged product with weights that were concatenated")
    a, b, scaling = term.parted()
    for first, second in ((a, b), (b, a)):
        if set(first.dims) == {group, contracted, RANK} and set(second.dims) == {group, RANK, kept}:
            return (
                lax.transpose(first.array, tuple(map(first.dims.index, (group, contracted, RANK)))),
                lax.transpose(second.array, tuple(map(second.dims.index, (group, RANK, kept)))),
                scaling,
            )
    raise Opaque("an adapter that is not one for each group")
