"""QA-LoRA: ``W + scaling * R A B``, R repeating each row of A over a block of inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jlora import _starts
from jlora._leaf import Leaf
from jlora._lowrank import RANK, Axes, Dims, Factor, Product
from jlora._methods._lora import LoraWeight
from jlora._node import Node, Shared
from jlora._peft_form import LowRank
from jlora._registry import register


@register("qalora")
@dataclasses.dataclass(frozen=True)
class QaLoraWeight(LoraWeight):
    """LoRA whose delta is the same for each block of neighbouring inputs.

    A sees the sum of the activations of each block: ``y = x W + scaling * (S x) A B``, with S the
    sums over ``block`` inputs. (The paper has the mean times the block's size, which is the sum.)
    So the delta is A B with each row repeated ``block`` times, and where a weight is stored as
    blocks of so many inputs with a minimum each, it goes into the minima alone. Several dimensions
    of inputs are one, the last one the fastest.

    Of LoRA's starts those that take no weight: each block begins with the row of A that LoRA has
    for its first input, so that what A gives is as large.

    Source: Xu et al. 2023, "QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language
    Models", arXiv 2309.14717, section 3.3.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(
        ...     targets="kernel", rank=2, method="qalora", options={"block": 4}
        ... )
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((8, 5))}, config, jax.random.key(0))
        >>> lora["kernel"].a.shape, lora["kernel"].b.shape  # 8 inputs are 2 blocks
        ((2, 2), (2, 5))
    """

    # here a is (*stack, blocks, rank)
    block: int = dataclasses.field(kw_only=True, metadata={"static": True})  # inputs of each
    inputs: tuple[int, ...] = dataclasses.field(kw_only=True, metadata={"static": True})  # sizes

    options: ClassVar = {"block": 32}
    inits: ClassVar = ("kaiming", "gaussian", "orthogonal")  # of others A differs by input

    @classmethod
    def problems(cls, config: Any) -> Iterable[str]:
        block = config.all_options["block"]
        if isinstance(block, bool) or not isinstance(block, int) or block < 1:
            yield f"block is {block!r}: expected a whole number of inputs, such as 32"
        yield from super().problems(config)

    @classmethod
    def unfit(cls, shape: tuple[int, ...], axes: Axes, options: Any) -> str | None:
        count, block = math.prod(shape[dim] for dim in axes.inputs), options["block"]
        if count % block:
            return f"has {count} inputs, which blocks of {block} do not divide: exclude it"
        return None

    @classmethod
    def start_fields(cls, leaf: Leaf) -> dict[str, Any]:
        block = leaf.options["block"]
        a, b = _starts.find(leaf.init)(_starts.Matrices.from_leaf(leaf, False))
        return {
            "a": a[..., ::block, :].astype(leaf.dtype),
            "b": b.reshape(*leaf.stack, leaf.rank, *leaf.outputs).astype(leaf.dtype),
            "scaling": leaf.scaling,
            "axes": leaf.axes,
            "dropout": leaf.dropout,
            "block": block,
            "inputs": leaf.inputs,
        }

    @property
    def shape(self) -> tuple[int, ...]:
        axes = self.axes
        sizes = dict(zip(axes.inputs, self.inputs, strict=True))
        sizes |= dict(zip(self._b_dims, self.b.shape, strict=False))
        return tuple(sizes[dim] for dim in sorted(sizes) if dim != RANK)

    def dimensions(self) -> dict[str, Dims]:
        return {**super().dimensions(), "a": (*self.axes.stack, RANK, RANK)}

    @property
    def _a_dims(self) -> Dims:
        stack, inputs, outputs = self.axes.stack, self.axes.inputs, self.axes.outputs
        blocks = len(stack) + len(inputs) + len(outputs)  # which is none of the weight's dimensions
        return (*stack, blocks, RANK)

    def product(self) -> Product:
        fields = super().product()
        return dataclasses.replace(fields, a=Factor(self._repeated(), super()._a_dims))

    def _repeated(self) -> jax.Array:
        """A as LoRA has it, (*stack, *in, rank): each row for all inputs of its block."""
        *stack, blocks, rank = self.a.shape
        rows = jnp.broadcast_to(self.a[..., None, :], (*stack, blocks, self.block, rank))
        return rows.reshape(*stack, *self.inputs, rank)

    @property
    def constant_along(self) -> tuple[int, int] | None:
        whole = self.inputs[-1] % self.block == 0
        return (self.axes.inputs[-1], self.block) if whole else None

    def part(self, dim: int, at: int) -> Node:
        if dim in self.axes.inputs:
            raise ValueError(
                f"dimension {dim} can't be taken apart: an A of QA-LoRA is for blocks of "
                f"{self.block} inputs"
            )
        return super().part(dim, at)

    def misfit(self, shape: tuple[int, ...], shared: Shared = MappingProxyType({})) -> str | None:
        problem, blocks = super().misfit(shape, shared), self.a.shape[-2]
        if problem is None and blocks * self.block != math.prod(self.inputs):
            return f"A has {blocks} rows for blocks of {self.block}, the leaf has {self.inputs}"
        return problem

    def combined(self, others: Sequence[Node], weights: Sequence[Any], method: str) -> Node:
        if len({getattr(node, "block", None) for node in (self, *others)}) > 1:
            raise ValueError("their blocks of inputs have other sizes")
        return super().combined(others, weights, method)

    def peft_form(self) -> LowRank:
        return LowRank(self._repeated(), self.b, self.scaling)
