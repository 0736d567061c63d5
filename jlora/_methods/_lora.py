"""LoRA: ``W + scaling * A B`` (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from jlora import _starts
from jlora._input_filter import Dropout
from jlora._leaf import Leaf
from jlora._lowrank import RANK, Axes, Dims, Factor, Factored, Product, add_deltas, along, wide
from jlora._method import Method
from jlora._node import Node, Shared
from jlora._peft_form import LowRank
from jlora._registry import register


@register("lora")
@dataclasses.dataclass(frozen=True)
class LoraWeight(Method):
    """The trainable low-rank delta of one weight: ``scaling * A B``.

    With W of shape ``(*stack, *in, *out)`` up to a permutation that ``axes`` records.
    This A is the paper's A transposed, and this B its B transposed.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
    arXiv 2106.09685, eq. 3.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2, alpha=4)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> lora["kernel"].a.shape, lora["kernel"].b.shape, float(lora["kernel"].scaling)
        ((7, 2), (2, 5), 2.0)
    """

    a: jax.Array  # (*stack, *in, rank)
    b: jax.Array  # (*stack, rank, *out)
    # float32, never trained: alpha / rank, or alpha / sqrt(rank). () for one and the same;
    # (*stack, rank) where layers differ: what a layer has less than the rank is zero there
    scaling: jax.Array
    axes: Axes = dataclasses.field(metadata={"static": True})
    # float32, never trained: the share of A's inputs that a call with dropout_key leaves out;
    # None where it leaves out nothing
    dropout: jax.Array | None = dataclasses.field(default=None, kw_only=True)

    trainable: ClassVar[tuple[str, ...]] = ("a", "b")
    decayed: ClassVar[tuple[str, ...]] = ("a", "b")
    factors: ClassVar[tuple[str, ...]] = ("a", "b")
    inits: ClassVar[tuple[str, ...]] = _starts.NAMES

    @classmethod
    def problems(cls, config: Any) -> Iterable[str]:
        start = _starts.STARTS.get(config.init)
        if start is None or not start.even_rank:
            return
        if odd := [rank for rank in config.all_ranks if rank % 2]:
            yield f"init is {config.init!r}: expected an even rank, got {odd[0]}"

    @classmethod
    def reads_weight(cls, init: str) -> bool:
        return cls.moves_weight(init)

    @classmethod
    def moves_weight(cls, init: str) -> bool:
        return _starts.find(init).moves_weight

    @classmethod
    def start(cls, leaf: Leaf) -> tuple[Self, Any]:
        node = cls(**cls.start_fields(leaf))
        moves = cls.moves_weight(leaf.init)
        return node, node.taken_from(leaf.weight) if moves else None

    @classmethod
    def start_fields(cls, leaf: Leaf) -> dict[str, Any]:
        """The fields of a node at its start; a class with more fields adds them here.

        A and B are by the start that the configuration names.
        """
        start = _starts.find(leaf.init)
        a, b = start(_starts.Matrices.from_leaf(leaf, start.moves_weight))
        return {
            "a": a.reshape(*leaf.stack, *leaf.inputs, leaf.rank).astype(leaf.dtype),
            "b": b.reshape(*leaf.stack, leaf.rank, *leaf.outputs).astype(leaf.dtype),
            "scaling": leaf.scaling,
            "axes": leaf.axes,
            "dropout": leaf.dropout,
        }

    @property
    def rank(self) -> int:
        """The number of columns of A, which is the number of rows of B."""
        return self.a.shape[-1]

    def dimensions(self) -> dict[str, Dims]:
        axes = self.axes
        uniform = jnp.ndim(self.scaling) == 0
        dims: dict[str, Dims] = {
            "a": self._a_dims,
            "b": self._b_dims,
            "scaling": () if uniform else (*axes.stack, RANK),
        }
        return dims if self.dropout is None else {**dims, "dropout": ()}

    def misfit(self, shape: tuple[int, ...], shared: Shared = MappingProxyType({})) -> str | None:
        problem = super().misfit(shape, shared)
        rows = self.b.shape[-1 - len(self.axes.outputs)]
        if problem is None and rows != self.rank:
            return f"A has {self.rank} columns, B has {rows} rows: expected one rank"
        return problem

    def product(self) -> Product:
        """``scaling * A B`` with all dimensions named; no gradient reaches scaling."""
        dims = self.dimensions()
        scaling = jax.lax.stop_gradient(self.scaling).astype(wide(self.b.dtype))
        return Product(
            Factor(self.a, dims["a"]), Factor(self.b, dims["b"]), Factor(scaling, dims["scaling"])
        )

    def adapt(self, weight: jax.Array, shared: Shared) -> Factored:
        return Factored((self.product(),))

    def input_filter(self, key: jax.Array | None) -> Dropout | None:
        if key is None or self.dropout is None:
            return None
        return Dropout(key, Factor(jax.lax.stop_gradient(self.dropout), ()))

    def unmerged(self, weight: jax.Array, shared: Shared) -> jax.Array:
        return self.taken_from(weight)

    def taken_from(self, weight: jax.Array) -> jax.Array:
        """``W - scaling * A B``, in the weight's dtype: what stays frozen after a start with it."""
        return add_deltas(weight, [-self.delta()], None)

    def delta(self) -> jax.Array:
        """``scaling * A B`` in the weight's shape, float32 or wider."""
        return self.product().delta(len(self.shape))

    def since(self, start: Node) -> LoraWeight:
        """``scaling * (A B - A0 B0)`` as one delta of twice the rank."""
        assert isinstance(start, LoraWeight)
        scaling = self.scaling
        if jnp.ndim(scaling):
            scaling = jnp.concatenate([scaling, scaling], axis=-1)
        return dataclasses.replace(
            self,
            a=jnp.concatenate([self.a, start.a], axis=-1),
            b=jnp.concatenate([self.b, -start.b], axis=len(self.axes.stack)),
            scaling=scaling,
        )

    def combined(self, others: Sequence[Node], weights: Sequence[Any], method: str) -> Node:
        """The sum of the deltas; for ``"linear"`` the product of a sum of A and a sum of B.

        Raises:
            ValueError: when their dimensions differ, or for ``"linear"`` their ranks.
        """
        nodes = [self, *(node for node in others if isinstance(node, LoraWeight))]
        if any(node.axes != self.axes for node in nodes):
            raise ValueError("their inputs, outputs and stacks are other dimensions")
        by = [w * node.scaling for w, node in zip(weights, nodes, strict=True)]
        if method == "cat":
            a = [_times(node.a, s, self._a_dims) for node, s in zip(nodes, by, strict=True)]
            b = [node.b for node in nodes]
            return self._of_factors(
                jnp.concatenate(a, axis=-1), jnp.concatenate(b, axis=len(self.axes.stack))
            )
        if len(ranks := {node.rank for node in nodes}) > 1:
            raise ValueError(
                f"linear adds A to A and B to B: expected one rank, got {sorted(ranks)}; cat takes "
                "any"
            )
        roots = [jnp.sqrt(jnp.abs(s)) for s in by]
        signed = [jnp.where(s < 0, -root, root) for s, root in zip(by, roots, strict=True)]
        a = (_times(node.a, s, self._a_dims) for node, s in zip(nodes, signed, strict=True))
        b = (_times(node.b, s, self._b_dims) for node, s in zip(nodes, roots, strict=True))
        return self._of_factors(functools.reduce(jnp.add, a), functools.reduce(jnp.add, b))

    @property
    def _a_dims(self) -> Dims:
        return (*self.axes.stack, *self.axes.inputs, RANK)

    @property
    def _b_dims(self) -> Dims:
        return (*self.axes.stack, RANK, *self.axes.outputs)

    def _of_factors(self, a: jax.Array, b: jax.Array) -> LoraWeight:
        return dataclasses.replace(self, a=a, b=b, scaling=jnp.ones((), jnp.float32))

    def peft_form(self) -> LowRank:
        return LowRank(self.a, self.b, self.scaling)


def _times(factor: jax.Array, scaling: jax.Array, dims: Dims) -> jax.Array:
    """The factor times a scaling, () or (*stack, rank); in the factor's dtype."""
    if jnp.ndim(scaling):
        scaling = along(Factor(scaling, (*dims[: scaling.ndim - 1], RANK)), dims)
    return (factor.astype(wide(factor.dtype)) * scaling).astype(factor.dtype)
