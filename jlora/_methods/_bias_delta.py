"""A bias on B: ``bias + scaling * delta``, and so ``x W + scaling * (x A B + delta)``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jlora._lowrank import Dims, add_deltas, wide
from jlora._node import Node, Shared
from jlora._peft_form import BiasOnB
from jlora._registry import register


@register("bias")
@dataclasses.dataclass(frozen=True)
class BiasDelta(Node):
    """What is added to the bias beside an adapted weight, scaled as that weight's A B.

    The bias of the paper's B, which the layer's own bias takes in: PEFT's ``lora_bias``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"kernel": jnp.ones((7, 5)), "bias": jnp.ones(5)}
        >>> config = jlora.LoraConfig(targets="kernel", rank=2, bias="lora")
        >>> frozen, lora = jlora.split(params, config, jax.random.key(0))
        >>> type(lora["bias"]).__name__, lora["bias"].delta.shape
        ('BiasDelta', (5,))
    """

    delta: jax.Array  # in the bias's shape, float32 or wider; zero at the start
    scaling: jax.Array  # float32, never trained: the weight's, () or (layers,)

    trainable: ClassVar[tuple[str, ...]] = ("delta",)

    @classmethod
    def from_bias(cls, bias: Any, scaling: jax.Array) -> BiasDelta:
        """The node of this bias, which changes nothing yet."""
        return cls(jnp.zeros(bias.shape, wide(bias.dtype)), scaling)

    def dimensions(self) -> dict[str, Dims]:
        return {
            "delta": tuple(range(jnp.ndim(self.delta))),
            "scaling": tuple(range(jnp.ndim(self.scaling))),
        }

    def adapt(self, weight: jax.Array, shared: Shared) -> jax.Array:
        return add_deltas(weight, [self._scaled()], None)

    def unmerged(self, weight: jax.Array, shared: Shared) -> jax.Array:
        return add_deltas(weight, [-self._scaled()], None)

    def _scaled(self) -> jax.Array:
        scaling = jax.lax.stop_gradient(self.scaling).astype(self.delta.dtype)
        over = jnp.ndim(self.delta) - jnp.ndim(scaling)
        return jnp.expand_dims(scaling, tuple(range(-over, 0))) * self.delta

    def combined(self, others: Sequence[Node], weights: Sequence[Any], method: str) -> Node:
        nodes = [self, *(node for node in others if isinstance(node, BiasDelta))]
        parts = [w * node._scaled() for w, node in zip(weights, nodes, strict=True)]
        one = jnp.ones((), jnp.float32)
        return BiasDelta(functools.reduce(jnp.add, parts), one)

    def peft_form(self) -> BiasOnB:
        return BiasOnB(self.delta, self.scaling)
