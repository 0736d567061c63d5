"""How much trains: parameters and bytes of an adapter against its base."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jlora import _optim
from jlora._methods import Node


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts of an adapted tree. Sizes count parameters; bytes are those of their dtypes."""

    trainable: int  # parameters in what trains: A and B
    frozen: int  # parameters of the base
    trainable_bytes: int
    frozen_bytes: int
    leaves: int  # adapted leaves
    rank: tuple[int, int]  # lowest, highest

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
        return (
            f"trainable {self.trainable:,} of {self.total:,} parameters ({self.percent:.3f} %) "
            f"in {self.leaves} adapted leaves of rank {low if low == high else f'{low}-{high}'}; "
            f"{_megabytes(self.trainable_bytes)} beside {_megabytes(self.frozen_bytes)} frozen"
        )


def summary(frozen: Any, lora: Mapping[str, Node]) -> Summary:
    """The parameter counts and bytes of what trains and what is frozen (shapes are enough)."""
    trains = _optim.mask(lora)
    trained = [
        leaf
        for leaf, train in zip(jax.tree.leaves(lora), jax.tree.leaves(trains), strict=True)
        if train
    ]
    frozen_leaves = [leaf for leaf in jax.tree.leaves(frozen) if hasattr(leaf, "dtype")]
    ranks = [node.rank for node in lora.values() if node.rank]
    return Summary(
        trainable=sum(_size(leaf) for leaf in trained),
        frozen=sum(_size(leaf) for leaf in frozen_leaves),
        trainable_bytes=sum(_bytes(leaf) for leaf in trained),
        frozen_bytes=sum(_bytes(leaf) for leaf in frozen_leaves),
        leaves=len(lora),
        rank=(min(ranks, default=0), max(ranks, default=0)),
    )


def _size(leaf) -> int:
    return math.prod(np.shape(leaf))


def _bytes(leaf) -> int:
    return _size(leaf) * leaf.dtype.itemsize


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"
