"""DoRA: ``m * (W + scaling * A B) / norm`` (Liu et al. 2024, arXiv 2402.09353, eq. 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jlora import _layout
from jlora._lowrank import RANK, Factor, Factored, wide
from jlora._methods._lora import LoraWeight
from jlora._methods._node import Dims, Node


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoraWeight(LoraWeight):
    """LoRA of a weight's direction, and a trained magnitude for each output.

    The norm of W + scaling A B over the inputs is a constant to the gradient (section 4.3 of the
    paper).
    """

    magnitude: jax.Array = dataclasses.field(kw_only=True)  # (*stack, *out), float32

    trainable: ClassVar[tuple[str, ...]] = ("a", "b", "magnitude")
    decayed: ClassVar[tuple[str, ...]] = ("a", "b")
    reads_weight: ClassVar[bool] = True

    @classmethod
    def of(cls, lora: LoraWeight, weight: Any) -> DoraWeight:
        """The node whose magnitudes are the norms of ``weight``, the adapted one at the start."""
        fields = {field.name: getattr(lora, field.name) for field in dataclasses.fields(lora)}
        order = (*lora.axes.stack, *lora.axes.outputs)
        return cls(**fields, magnitude=jnp.sqrt(_squares(weight, order)))

    def layout(self) -> dict[str, Dims]:
        return {**super().layout(), "magnitude": (*self.axes.stack, *self.axes.outputs)}

    def part(self, dim: int, at: int) -> Node:
        if dim in self.axes.inputs:
            raise ValueError(
                f"dimension {dim} can't be taken apart: DoRA's norms are over the inputs "
                f"{self.axes.inputs}, all of them"
            )
        return super().part(dim, at)

    def instead_of(self, weight: jax.Array) -> Factored:
        product = self.product()
        norms = jax.lax.stop_gradient(_norms(weight, product.a, product.scaled_b))
        gain = self.magnitude / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)
        if jnp.ndim(self.scaling):  # a layer that is not adapted keeps its magnitudes too
            adapted = (self.scaling != 0).any(-1)
            adapted = jnp.expand_dims(adapted, tuple(range(-len(self.axes.outputs), 0)))
            gain = jnp.where(adapted, gain, 1)
        dims = (*self.axes.stack, *self.axes.outputs, RANK)
        return Factored((product,), Factor(gain[..., None], dims))

    def unmerged(self, weight: jax.Array) -> jax.Array:
        raise ValueError(
            "a DoRA merge can't be undone: the weight's norms are not in it any more. "
            "Keep the frozen tree"
        )


def _norms(weight: jax.Array, a: Factor, b: Factor) -> jax.Array:
    """The norm over the inputs of W + A B, (*stack, *out), without forming the sum.

    ``|w + A b|^2 = |w|^2 + 2 b.(A'w) + b.(A'A)b`` for each column w of W and b of B.
    """
    dtype = wide(weight.dtype)
    dims, rank, other = list(range(weight.ndim)), weight.ndim, weight.ndim + 1
    a_dims = [rank if dim == RANK else dim for dim in a.dims]
    b_dims = [rank if dim == RANK else dim for dim in b.dims]
    outputs = [dim for dim in b_dims if dim != rank]
    stack = [dim for dim in a_dims if dim in outputs]

    def einsum(x, x_dims, y, y_dims, out):
        where = _layout.out_sharding(x, x_dims, y, y_dims, out)
        product = jnp.einsum(x, x_dims, y, y_dims, out, precision="highest", out_sharding=where)
        return product.astype(dtype)

    squares = _squares(weight, outputs)
    # a bfloat16 weight meets A as it does in the forward pass; no wider copy of it is made
    across = einsum(a.array.astype(weight.dtype), a_dims, weight, dims, b_dims)
    within = einsum(
        a.array, a_dims, a.array, [other if d == rank else d for d in a_dims], [*stack, other, rank]
    )
    other_dims = [other if dim == rank else dim for dim in b_dims]
    against = einsum(within, [*stack, other, rank], b.array, b_dims, other_dims)
    cross = jnp.sum(b.array * (2 * across + against), axis=b.dims.index(RANK))
    return jnp.sqrt(jnp.maximum(squares + cross, 0))


def _squares(weight: jax.Array, order: Sequence[int]) -> jax.Array:
    """The sum of squares over all other dimensions, in float32 or wider."""
    others = tuple(dim for dim in range(weight.ndim) if dim not in order)
    squares = jnp.sum(jnp.square(weight.astype(wide(weight.dtype))), axis=others)
    return jnp.transpose(squares, [sorted(order).index(dim) for dim in order])
