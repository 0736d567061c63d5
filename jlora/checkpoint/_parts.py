"""The fingerprint of one leaf, of parts that come by one after another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jlora.checkpoint import _position_sums
from jlora.checkpoint._fingerprint import digest_of_sample, entry, sampled


class Parts:
    """What `fingerprint` says of one leaf, gathered from its parts: a leaf that is never whole.

    Args:
        shape: of the leaf.
        dtype: of the leaf; parts are cast to it.

    Example:
        >>> import numpy as np
        >>> from jlora import checkpoint
        >>> stack = np.random.default_rng(0).normal(size=(3, 7, 5))
        >>> parts = checkpoint.Parts(stack.shape, stack.dtype)
        >>> for layer in range(3):
        ...     parts.see(stack[layer], (layer,))
        >>> parts.fingerprint == checkpoint.fingerprint({"kernel": stack})["kernel"]
        True
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._at = sampled(math.prod(shape))
        self._values = np.zeros(len(self._at), self._dtype)
        self._sums, self._left = (0, 0), math.prod(shape)

    def see(self, part: np.ndarray, index: tuple[int, ...] = ()) -> None:
        """Takes ``part``, which is ``leaf[index]``; each part comes by once."""
        part = np.asarray(part).astype(self._dtype, copy=False)
        first = int(np.ravel_multi_index(index, self._shape[: len(index)])) if index else 0
        inside = self._at - first * part.size
        here = (inside >= 0) & (inside < part.size)
        values = part[np.unravel_index(inside[here], part.shape)] if part.shape else part
        self._values[here] = values
        whole = part.reshape((1,) * len(index) + part.shape)
        starts = (*index, *(0 for _ in part.shape))
        self._sums = _position_sums.added(self._sums, _position_sums.of_part(whole, starts))
        self._left -= part.size

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """The leaf's, once every part was seen; None before."""
        if self._left:
            return None
        return entry(self._shape, self._dtype, digest_of_sample(self._values), self._sums)
