"""What every quantised weight says: its format, what it stands for, and what it takes to store."""

from __future__ import annotations

from typing import Any, Self

import jax

from jlora._frozen_leaf import FrozenLeaf
from jlora._lowrank import Axes


class QuantizedWeight(FrozenLeaf):
    """A frozen weight in a few bits, decoded where it is used: what `jlora.quantize` makes.

    A registered dataclass of the stored arrays, the ``format``, and the ``shape``, ``dtype`` and
    ``axes`` of the weight that they stand for. No gradient reaches it.

    Example:
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"kernel": jnp.ones((64, 5))}
        >>> leaf = jlora.quantize(params, "int8", targets="kernel")["kernel"]
        >>> isinstance(leaf, jlora.QuantizedWeight), leaf.format, leaf.shape, leaf.nbytes
        (True, 'int8', (64, 5), 340)
    """

    format: Any  # its name, such as "Q4_1"
    axes: Any  # how the weight is used: blocks run along its inputs

    @classmethod
    def encoded(cls, weight: jax.Array, axes: Axes, format: str) -> Self:
        """A floating array that is used so, in the format's nearest numbers.

        Raises:
            NotImplementedError: in a class whose weights are only read.
        """
        raise NotImplementedError(f"{format} is only read")

    def like(self, weight: jax.Array) -> Self:
        """Another weight of this shape and dtype in this format.

        Where it says what this one says, it has this one's bytes: by blocks or by matrices, as the
        format allows.

        Raises:
            NotImplementedError: where the format is only read.
        """
        raise NotImplementedError(f"{self.format} is only read")

    @property
    def of_a_block(self) -> dict[str, int]:
        """Array fields whose last axis runs along the inputs, block by block -> entries of one."""
        return {}

    @property
    def encodes(self) -> bool:
        """Whether weights can be written in this format, or read alone: whether it has a `like`."""
        return type(self).like is not QuantizedWeight.like
