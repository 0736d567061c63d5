"""What an adapted leaf holds: a low-rank node, its axes, and the algebra of W + scaling * A B."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Axes:
    """The dimensions of a weight by what its products do with them, each in the weight's order.

    The paper's W acts from the left, as (out, in); a JAX kernel acts from the right, as (in, out).
    Which is which is said here, once, so that any layout is adapted alike.
    """

    inputs: tuple[int, ...] = (0,)  # contracted with the activations
    outputs: tuple[int, ...] = (1,)  # kept in the result
    stack: tuple[int, ...] = ()  # one matrix each: layers of a scan, experts

    def __post_init__(self):
        dims = (*self.stack, *self.inputs, *self.outputs)
        if sorted(dims) != list(range(len(dims))):
            raise ValueError(
                f"{self}: each of the {len(dims)} dimensions 0..{len(dims) - 1} must stand in "
                "exactly one of inputs, outputs and stack"
            )
        if not self.inputs or not self.outputs:
            raise ValueError(f"{self}: a low-rank delta needs an input and an output dimension")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factor:
    """An array that covers some dimensions of a weight, and the rank."""

    array: jax.Array
    # for each axis of the array: the weight's dimension, or RANK
    dims: tuple[int, ...] = dataclasses.field(metadata={"static": True})


RANK = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraWeight:
    """The trainable low-rank delta of one weight: ``scaling * A B`` (Hu et al. 2021, eq. 3).

    With W of shape (*stack, *in, *out) up to a permutation that ``axes`` records.
    This A is the paper's A transposed, and this B its B transposed.
    """

    a: jax.Array  # (*stack, *in, rank)
    b: jax.Array  # (*stack, rank, *out)
    scaling: jax.Array  # (), float32, never trained: alpha / rank
    axes: Axes = dataclasses.field(metadata={"static": True})

    trainable: ClassVar[tuple[str, ...]] = ("a", "b")

    @property
    def rank(self) -> int:
        """The number of columns of A, which is the number of rows of B."""
        return self.a.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that this node adapts."""
        axes = self.axes
        sizes = dict(zip((*axes.stack, *axes.inputs), self.a.shape, strict=False))
        outputs = self.b.shape[len(axes.stack) + 1 :]
        sizes |= dict(zip(axes.outputs, outputs, strict=True))
        return tuple(sizes[dim] for dim in range(len(sizes)))

    def factors(self) -> tuple[Factor, Factor]:
        """A and scaling * B with their dimensions named; no gradient reaches scaling."""
        axes = self.axes
        wide = jnp.promote_types(self.b.dtype, jnp.float32)  # bfloat16 would round the scaling
        b = self.b.astype(wide) * jax.lax.stop_gradient(self.scaling).astype(wide)
        return (
            Factor(self.a, (*axes.stack, *axes.inputs, RANK)),
            Factor(b, (*axes.stack, RANK, *axes.outputs)),
        )

    def delta(self) -> jax.Array:
        """``scaling * A B`` in the weight's shape, float32 or wider."""
        return multiply(*self.factors(), ndim=len(self.shape))


def multiply(a: Factor, b: Factor, *, ndim: int) -> jax.Array:
    """The sum over the rank of A B, its dimensions in the weight's order (absent ones have size 1).

    Accumulates in float32 or wider, because the sum is about to be added to a weight.
    """
    present = sorted((set(a.dims) | set(b.dims)) - {RANK})
    wide = functools.reduce(jnp.promote_types, (a.array.dtype, b.array.dtype), jnp.float32)
    product = jnp.einsum(
        a.array.astype(wide),
        [dim + 1 for dim in a.dims],
        b.array.astype(wide),
        [dim + 1 for dim in b.dims],
        [dim + 1 for dim in present],
    )
    return jnp.expand_dims(product, [dim for dim in range(ndim) if dim not in present])


def add(weight: jax.Array, delta: jax.Array) -> jax.Array:
    """``weight + delta``, summed in float32 or wider and cast once to the weight's dtype.

    A bfloat16 sum would lose a small delta whole. Where the delta is zero the weight comes back bit
    for bit (-0.0 too).
    """
    wide = jnp.promote_types(weight.dtype, delta.dtype)
    return _add_exactly(weight.astype(wide), delta.astype(wide)).astype(weight.dtype)


@jax.custom_jvp
def _add_exactly(weight, delta):
    return jnp.where(delta == 0, weight, weight + delta)


@_add_exactly.defjvp
def _(primals, tangents):
    weight_dot, delta_dot = tangents
    return _add_exactly(*primals), weight_dot + delta_dot


def matrix_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    """The weight read as one matrix of its stack: (product of inputs, product of outputs)."""
    return (
        math.prod(shape[dim] for dim in axes.inputs),
        math.prod(shape[dim] for dim in axes.outputs),
    )
