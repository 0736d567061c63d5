"""How much trains: parameters and bytes of an adapter against its base."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jlora import _optim, _paths, _words
from jlora._frozen_leaf import is_frozen_leaf
from jlora._lift import adapted_otherwise, told_left_out, told_otherwise
from jlora._lora_dict import of_leaves
from jlora._lowrank import Axes
from jlora._node import Node
from jlora._traced_axes import TracedAxes


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts of an adapted tree. Sizes count parameters; bytes are those of their dtypes.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> told = jlora.summary(frozen, lora)
        >>> told.trainable, told.frozen, told.leaves, told.rank  # 7 * 2 + 2 * 5, 7 * 5
        (24, 35, 1, (2, 2))
    """

    trainable: int  # parameters in what trains: A and B
    frozen: int  # parameters of the base
    trainable_bytes: int
    frozen_bytes: int
    leaves: int  # adapted leaves
    rank: tuple[int, int]  # lowest, highest
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by all-linear, and why
    # adapted leaves whose axes are not those that were seen, and how the function uses them
    otherwise: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        """Trainable and frozen parameters together."""
        return self.trainable + self.frozen

    @property
    def percent(self) -> float:
        """The trainable share of the total, in per cent."""
        return 100 * self.trainable / max(self.total, 1)

    def __str__(self) -> str:
        low, high = self.rank
        counts = (
            f"trainable {self.trainable:,} of {self.total:,} parameters ({self.percent:.3f} %) "
            f"in {self.leaves} adapted leaves of rank {low if low == high else f'{low}-{high}'}; "
            f"{_words.size(self.trainable_bytes)} beside {_words.size(self.frozen_bytes)} frozen"
        )
        told = [*told_otherwise(self.otherwise), *told_left_out(self.left_out)]
        return "\n".join([counts, *told])


def summary(
    frozen: Any, lora: Mapping[str, Node], axes: Mapping[str, Axes] | None = None
) -> Summary:
    """The parameter counts and bytes of what trains and what is frozen (shapes are enough).

    Args:
        frozen: from `split`.
        lora: from `split`.
        axes: from `trace_axes`: tells what ``targets="all-linear"`` left out, and why, and what is
            not adapted as the function uses it.

    Returns:
        the counts; print them for a line of text.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> print(jlora.summary(frozen, lora))
        trainable 24 of 59 parameters (40.678 %) in 1 adapted leaves of rank 2; ...
    """
    trains = _optim.mask(lora)
    trained = [
        leaf
        for leaf, train in zip(jax.tree.leaves(lora), jax.tree.leaves(trains), strict=True)
        if train
    ]
    weights = [leaf for leaf in _paths.flatten(frozen)[0].values() if hasattr(leaf, "dtype")]
    arrays = [leaf for leaf in jax.tree.leaves(frozen) if hasattr(leaf, "dtype")]
    seen = axes if isinstance(axes, TracedAxes) else TracedAxes({})
    ranks = [node.rank for node in lora.values() if node.rank]
    return Summary(
        trainable=sum(_size(leaf) for leaf in trained),
        frozen=sum(_size(leaf) for leaf in weights),
        trainable_bytes=sum(_bytes(leaf) for leaf in trained),
        frozen_bytes=sum(_bytes(leaf) for leaf in arrays),
        leaves=len(of_leaves(lora)),
        rank=(min(ranks, default=0), max(ranks, default=0)),
        left_out={p: why for p, why in seen.left_out.items() if p not in lora},
        otherwise=adapted_otherwise(seen, lora) if seen is axes else {},
    )


def _size(leaf) -> int:
    return math.prod(leaf.shape if is_frozen_leaf(leaf) else np.shape(leaf))


def _bytes(leaf) -> int:
    return _size(leaf) * leaf.dtype.itemsize
