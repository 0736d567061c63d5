"""LoRA: ``W + scaling * A B`` (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jlora._input_filter import Dropout
from jlora._lowrank import RANK, Axes, Factor, Factored, Product, add_deltas, wide
from jlora._node import Dims, Node


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraWeight(Node):
    """The trainable low-rank delta of one weight: ``scaling * A B`` (Hu et al. 2021, eq. 3).

    With W of shape (*stack, *in, *out) up to a permutation that ``axes`` records.
    This A is the paper's A transposed, and this B its B transposed.
    """

    a: jax.Array  # (*stack, *in, rank)
    b: jax.Array  # (*stack, rank, *out)
    # float32, never trained: alpha / rank, or alpha / sqrt(rank). () for one and the same;
    # (*stack, rank) where layers differ: what a layer has less than the rank is zero there
    scaling: jax.Array
    axes: Axes = dataclasses.field(metadata={"static": True})
    # float32, never trained: the share of A's inputs that a call with dropout_key leaves out
    dropout: jax.Array | None = dataclasses.field(default=None, kw_only=True)

    trainable: ClassVar[tuple[str, ...]] = ("a", "b")
    decayed: ClassVar[tuple[str, ...]] = ("a", "b")

    reads_weight: ClassVar[bool] = False  # whether `of` needs the weight

    @classmethod
    def of(cls, lora: LoraWeight, weight: Any) -> LoraWeight:
        """The node of this method, from a plain one as it starts and the weight."""
        return lora

    @property
    def rank(self) -> int:
        """The number of columns of A, which is the number of rows of B."""
        return self.a.shape[-1]

    def dimensions(self) -> dict[str, Dims]:
        axes = self.axes
        uniform = jnp.ndim(self.scaling) == 0
        dims: dict[str, Dims] = {
            "a": (*axes.stack, *axes.inputs, None),
            "b": (*axes.stack, None, *axes.outputs),
            "scaling": () if uniform else (*axes.stack, None),
        }
        return dims if self.dropout is None else {**dims, "dropout": ()}

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        problem = super().misfit(shape)
        rows = self.b.shape[-1 - len(self.axes.outputs)]
        if problem is None and rows != self.rank:
            return f"A has {self.rank} columns, B has {rows} rows: expected one rank"
        return problem

    def product(self) -> Product:
        """``scaling * A B`` with all dimensions named; no gradient reaches scaling."""
        axes = self.axes
        scaling = jax.lax.stop_gradient(self.scaling).astype(wide(self.b.dtype))
        return Product(
            Factor(self.a, (*axes.stack, *axes.inputs, RANK)),
            Factor(self.b, (*axes.stack, RANK, *axes.outputs)),
            Factor(scaling, (*axes.stack, RANK) if scaling.ndim else ()),
        )

    def adapt(self, weight: jax.Array) -> Factored:
        return Factored((self.product(),))

    def input_filter(self, key: jax.Array | None) -> Dropout | None:
        if key is None or self.dropout is None:
            return None
        return Dropout(key, Factor(jax.lax.stop_gradient(self.dropout), ()))

    def unmerged(self, weight: jax.Array) -> jax.Array:
        return self.taken_from(weight)

    def taken_from(self, weight: jax.Array) -> jax.Array:
        """``W - scaling * A B``, in the weight's dtype: what stays frozen after a start with it."""
        return add_deltas(weight, [-self.delta()], None)

    def delta(self) -> jax.Array:
        """``scaling * A B`` in the weight's shape, float32 or wider."""
        return self.product().delta(len(self.shape))
