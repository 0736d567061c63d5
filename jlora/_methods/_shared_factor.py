"""An array that several nodes use, kept once: the entry ``shared/NAME`` of a lora dict."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jlora._lowrank import RANK, Dims
from jlora._node import Node, Shared
from jlora._registry import register


@register("shared")
@dataclasses.dataclass(frozen=True)
class SharedFactor(Node):
    """A factor of several leaves, as large as the largest of them needs.

    A `Method` makes it in `Method.shared`; `Node.adapt` then finds it by its name.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora import extend
        >>> extend.SharedFactor(jnp.ones((7, 2))).trainable
        ()
        >>> extend.SharedFactor(jnp.ones((7, 2)), trains=True).trainable
        ('value',)
    """

    value: jax.Array
    trains: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def trainable(self) -> tuple[str, ...]:
        """Its value, if it trains."""
        return ("value",) if self.trains else ()

    @property
    def decayed(self) -> tuple[str, ...]:
        """The same."""
        return self.trainable

    def dimensions(self) -> dict[str, Dims]:
        return {"value": (RANK,) * jnp.ndim(self.value)}

    def adapt(self, weight: Any, shared: Shared) -> jax.Array:
        """Nothing.

        Raises:
            ValueError: always: no leaf has it for its node.
        """
        raise ValueError("a shared factor stands for no weight")

    def unmerged(self, weight: jax.Array, shared: Shared) -> jax.Array:
        raise ValueError("a shared factor stands for no weight")
