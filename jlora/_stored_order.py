"""In which order a device reads stored arrays: as they lie, where it would copy them otherwise."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

_LANES = 128  # of a TPU's tile: rows of whole tiles lie as rows


def as_stored(arrays: Any) -> Any:
    """The same arrays, which a TPU reads as they lie.

    What decodes a layer would have the outputs last. The compiler for TPUs carries that wish out of
    a loop over layers and copies the whole stack for it. Told here, it turns a layer at a time.
    """
    return jax.tree.map(_as_it_lies, arrays)


def _as_it_lies(array: jax.Array) -> jax.Array:
    if array.ndim < 2 or array.shape[-1] % _LANES:
        return array  # a TPU lays it out as it sees fit
    return lax.platform_dependent(array, tpu=_in_rows, default=lambda array: array)


def _in_rows(array: jax.Array) -> jax.Array:
    return with_layout_constraint(array, Layout(major_to_minor=tuple(range(array.ndim))))
