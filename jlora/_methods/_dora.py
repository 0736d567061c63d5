"""DoRA: ``m * (W + scaling * A B) / norm`` (Liu et al. 2024, arXiv 2402.09353, eq. 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jlora._leaf import Leaf
from jlora._lowrank import Axes, Dims, Factor, Factored, Product, squared_sums
from jlora._methods._lora import LoraWeight
from jlora._node import Node, Shared
from jlora._peft_form import LowRank
from jlora._registry import register


@register("dora")
@dataclasses.dataclass(frozen=True)
class DoraWeight(LoraWeight):
    """LoRA of a weight's direction, and a trained magnitude for each output.

    The norm of W + scaling A B over the inputs is a constant to the gradient (section 4.3 of the
    paper).

    Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, eq. 5.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2, method="dora")
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> lora["kernel"].magnitude.shape
        (5,)
    """

    magnitude: jax.Array = dataclasses.field(kw_only=True)  # (*stack, *out), float32

    trainable: ClassVar[tuple[str, ...]] = ("a", "b", "magnitude")
    decayed: ClassVar[tuple[str, ...]] = ("a", "b")

    @classmethod
    def reads_weight(cls, init: str) -> bool:
        return True

    @classmethod
    def start_fields(cls, leaf: Leaf) -> dict[str, Any]:
        """Its magnitudes are the norms of the weight, so that it is what it was."""
        return {
            **super().start_fields(leaf),
            "magnitude": norms_over_inputs(leaf.weight, [], leaf.axes),
        }

    def dimensions(self) -> dict[str, Dims]:
        return {**super().dimensions(), "magnitude": (*self.axes.stack, *self.axes.outputs)}

    def part(self, dim: int, at: int) -> Node:
        if dim in self.axes.inputs:
            raise ValueError(
                f"dimension {dim} can't be taken apart: DoRA's norms are over the inputs "
                f"{self.axes.inputs}, all of them"
            )
        return super().part(dim, at)

    def adapt(self, weight: jax.Array, shared: Shared) -> Factored:
        product = self.product()
        norms = jax.lax.stop_gradient(norms_over_inputs(weight, [product], self.axes))
        gain = self.magnitude / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)
        if jnp.ndim(self.scaling):  # a layer that is not adapted keeps its magnitudes too
            adapted = (self.scaling != 0).any(-1)
            adapted = jnp.expand_dims(adapted, tuple(range(-len(self.axes.outputs), 0)))
            gain = jnp.where(adapted, gain, 1)
        return Factored((product,), Factor(gain, self.dimensions()["magnitude"]))

    def unmerged(self, weight: jax.Array, shared: Shared) -> jax.Array:
        raise ValueError(
            "a DoRA merge can't be undone: the weight's norms are not in it any more. "
            "Keep the frozen tree"
        )

    def combined(self, others: Sequence[Node], weights: Sequence[Any], method: str) -> Node:
        return Node.combined(self, others, weights, method)  # magnitudes have no sum

    def peft_form(self) -> LowRank:
        return LowRank(self.a, self.b, self.scaling, self.magnitude)


def norms_over_inputs(weight: jax.Array, products: Sequence[Product], axes: Axes) -> jax.Array:
    """The norm over the inputs of W + A B, (*stack, *out), without forming the sum."""
    sums = squared_sums(weight, products, axes.inputs)
    assert sums is not None  # A alone has the inputs
    order = (*axes.stack, *axes.outputs)
    return jnp.sqrt(jnp.transpose(sums, [sorted(order).index(dim) for dim in order]))
