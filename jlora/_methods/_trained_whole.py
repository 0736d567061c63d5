"""Full training of one leaf: a head, a norm, a bias, kept beside the adapters."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jlora._lowrank import Dims, wide
from jlora._node import Node, Shared
from jlora._peft_form import Whole
from jlora._registry import register


@register("whole")
@dataclasses.dataclass(frozen=True)
class WholeWeight(Node):
    """A leaf that trains as it is, and takes the frozen one's place.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"kernel": jnp.ones((7, 5)), "norm": jnp.ones(7)}
        >>> config = jlora.LoraConfig(targets="kernel", rank=2, train="norm")
        >>> frozen, lora = jlora.split(params, config, jax.random.key(0))
        >>> type(lora["norm"]).__name__, lora["norm"].value.shape
        ('WholeWeight', (7,))
    """

    value: jax.Array  # in the leaf's shape, float32 or wider

    trainable: ClassVar[tuple[str, ...]] = ("value",)
    replaces: ClassVar[bool] = True

    @classmethod
    def from_weight(cls, weight: Any) -> WholeWeight:
        """The node that starts at ``weight``."""
        return cls(weight.astype(wide(weight.dtype)))

    def dimensions(self) -> dict[str, Dims]:
        return {"value": tuple(range(jnp.ndim(self.value)))}

    def adapt(self, weight: jax.Array, shared: Shared) -> jax.Array:
        return self.value.astype(weight.dtype)

    def unmerged(self, weight: jax.Array, shared: Shared) -> jax.Array:
        raise ValueError(
            "a leaf that was trained whole can't be unmerged: the frozen one is not in it any "
            "more. Keep the frozen tree"
        )

    def peft_form(self) -> Whole:
        return Whole(self.value)
