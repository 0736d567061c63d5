"""A quantised tensor of a file in its own numbers: the arrays that a leaf keeps of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jlora._quantised import QuantizedWeight
from jlora.models._files._tensor import Tensor


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One array, of which is read what is asked for; the tensor's own stack comes first."""

    tensor: Tensor
    dtype: np.dtype  # of the leaf's array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape


@dataclasses.dataclass(frozen=True)
class Kept:
    """A tensor's arrays by the leaf's fields; those of equal leaves and settings are one leaf."""

    leaf: type[QuantizedWeight]
    settings: tuple[tuple[str, Any], ...]  # further fields of the leaf
    arrays: Mapping[str, Numbers]
    # Outputs of several tensors may lie side by side where each has a multiple of so many; where
    # they can't, `apart` is the same in arrays that can, if there are any.
    rows: int | None = 1
    apart: Kept | None = None
    # Whether the tensor is (in, out), and the arrays are by outputs all the same.
    turned: bool = False

    @property
    def kind(self) -> tuple[Any, ...]:
        """What all that is one leaf has in common."""
        shapes = tuple((name, numbers.shape) for name, numbers in self.arrays.items())
        return self.leaf.__name__, self.settings, shapes

    @property
    def format(self) -> str:
        """As jlora calls it."""
        return dict(self.settings).get("format") or self.leaf.format
