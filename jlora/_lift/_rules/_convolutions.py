"""Convolutions with an adapted kernel: the base one, and two thin ones beside it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._lift import _jax
from jlora._lift._decline import Decline
from jlora._lift._rules._products import report_factored
from jlora._lift._sums import ProductSum
from jlora._lift._term import Term
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Weight
from jlora._lowrank import RANK, Factor, scaled

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
    output, *inputs = eqn.params["dimension_numbers"].rhs_spec
    if isinstance(x, Weight):
        walk.run.contracts(x, (), range(x.ndim))
    if isinstance(kernel, Weight):
        walk.run.contracts(kernel, inputs, [output])
    if isinstance(x, Weight):
        raise Decline("the weight is the input of a convolution")
    if eqn.params["batch_group_count"] != 1:
        raise Decline("a convolution with groups in the batch")
    out = eqn.outvars[0].aval
    if 0 in (*out.shape, *x.shape, *kernel.shape):
        raise Decline("an empty convolution")
    kernel = kernel.filled(range(kernel.ndim))
    groups = eqn.params["feature_group_count"]
    parted = [_convolved_and_mixed(term, output, inputs) for term in kernel.thin]
    taps = math.prod(kernel.shape[dim] for dim in inputs)
    size = math.prod(_jax.counted(out.shape))
    base_flops = 2 * size * taps
    places = size // kernel.shape[output]  # batch and positions
    ranks = [term.rank for term in kernel.terms]
    flops = [2 * places * rank * (groups * taps + kernel.shape[output]) for rank in ranks]
    if kernel.form is None and _merging_costs_less(
        kernel, base_flops, 2 * places * (groups * taps + kernel.shape[output])
    ):
        raise Decline("the kernel is so small (depthwise?) that merging it costs less")
    if kernel.gain is not None and set(kernel.gain.dims) != {output}:
        raise Decline("a convolution with magnitudes that are not one for each output channel")
    channel = eqn.params["dimension_numbers"].out_spec[1]
    dims = tuple(output if dim == channel else None for dim in range(len(out.shape)))
    base = kernel.multiply(lambda w, x: walk.bind(eqn, [x, w])[0], x, kept=dims)
    nowhere = (None,) * x.ndim
    thins = [
        _thin(x if term.filter is None else term.filter(x, nowhere), parts, kernel, eqn.params)
        for term, parts in zip(kernel.thin, parted, strict=True)
    ]
    report_factored(walk, eqn, kernel, base, base_flops, flops)
    return [ProductSum(base, tuple(thins), kernel.gain_along(dims))]


def _merging_costs_less(kernel: Weight, base_flops: int, flops_of_a_rank: int) -> bool:
    """Whether the thin convolutions cost more than the base one and W + A B; of rank 1 at least."""
    rank = sum(term.rank for term in kernel.terms) or 1
    return flops_of_a_rank * rank > base_flops + 2 * kernel.size * rank


def _convolved_and_mixed(term: Term, output: int, inputs: list[int]) -> Parts:
    """Which factor has the inputs and the window, which the output channels; and the scaling."""
    if term.present is not None:
        raise Decline("a convolution with a kernel that was looked up")
    a, b, scaling = term.parted()
    for convolved, mixed in ((a, b), (b, a)):
        if output not in convolved.dims and set(mixed.dims) == {output, RANK}:
            return convolved, mixed, scaling
    raise Decline("a convolution whose window is not all on one side of the adapter")


def _thin(x: jax.Array, parts: Parts, kernel: Weight, params: dict[str, Any]) -> jax.Array:
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
        preferred_element_type=params["preferred_element_type"],
    )
    b = lax.transpose(mixed.array, (mixed.dims.index(RANK), mixed.dims.index(output)))
    b = b.astype(kernel.dtype).reshape(rank, groups, -1)
    channel = numbers.out_spec[1]
    hidden = jnp.moveaxis(hidden, channel, -1)
    hidden = hidden.reshape(*hidden.shape[:-1], groups, rank)
    hidden, _ = scaled(hidden, (*(None,) * (hidden.ndim - 1), RANK), scaling)
    hidden = hidden.astype(b.dtype)
    mixed_out = jnp.einsum(
        "...gr,rgo->...go",
        hidden,
        b,
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    return jnp.moveaxis(mixed_out.reshape(*mixed_out.shape[:-2], -1), -1, channel)
