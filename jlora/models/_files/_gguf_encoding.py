"""The bytes of a GGUF tensor whose weights have changed: encoded anew, or by its minima alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from jlora._requires import requires

# What the `gguf` package encodes.
TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16", "F32")
WITH_MINIMA = ("Q4_1", "Q5_1")  # scale and minimum in half precision, before each block's numbers
_MINIMUM = slice(2, 4)


def kind_of(name: str) -> Any:
    """The `gguf` package's type of this name.

    Raises:
        ValueError: when it has no encoder for it.
    """
    if name not in TYPES:
        raise ValueError(f"type is {name!r}: expected one of {', '.join(TYPES)}")
    return requires("gguf").GGMLQuantizationType[name]


def block_of(kind: Any) -> int:
    """How many weights of a row are encoded together."""
    return requires("gguf").GGML_QUANT_SIZES[kind][0]


def decoded(stored: np.ndarray, kind: Any) -> np.ndarray:
    """The weights in float32, of bytes (..., bytes of a row)."""
    return requires("gguf").dequantize(stored, kind)


def encoded(new: np.ndarray, kind: Any, what: str) -> np.ndarray:
    """The bytes (..., bytes of a row) of weights (..., row).

    Raises:
        ValueError: when the type can't hold a weight.
    """
    wide = np.ascontiguousarray(new, np.float32)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # said below
        stored = requires("gguf").quantize(wide, kind).view(np.uint8)
        if not np.isfinite(decoded(stored, kind)).all() and np.isfinite(new).all():
            raise ValueError(f"{what}: the merged weight has values that {kind.name} can't hold")
    return stored


def with_change(
    stored: np.ndarray, kind: Any, old: np.ndarray, new: np.ndarray, what: str
) -> np.ndarray:
    """The stored bytes, in which the blocks that hold a changed weight are encoded anew.

    Args:
        stored: (..., bytes of a row).
        kind: their type.
        old: the weights before, (..., row).
        new: after.
        what: the tensor, for messages.
    """
    changed = np.any(_blocks(np.not_equal(old, new), block_of(kind)), axis=-1)
    if not np.any(changed):
        return stored
    size = requires("gguf").GGML_QUANT_SIZES[kind][1]
    before, after = _blocks(stored, size), _blocks(encoded(new, kind, what), size)
    return np.where(changed[..., None], after, before).reshape(stored.shape)


def with_minima(
    stored: np.ndarray, kind: Any, old: np.ndarray, new: np.ndarray, what: str
) -> np.ndarray:
    """The stored bytes, with a change that is constant over each block in the minima alone.

    `Xu et al. 2023 <https://arxiv.org/abs/2309.14717>`_, section 3.3.
    """
    size = requires("gguf").GGML_QUANT_SIZES[kind][1]
    # in float64: the difference of two float32 numbers is exact there
    change = _blocks(new.astype(np.float64) - old, block_of(kind)).mean(-1)
    blocks = _blocks(stored, size).copy()
    before = blocks[..., _MINIMUM].copy().view("<f2")[..., 0]
    with np.errstate(over="ignore"):  # said below
        after = np.where(change == 0, before, (before + change).astype("<f2"))
    if not np.isfinite(after).all():
        raise ValueError(f"{what}: a minimum comes out larger than half precision can hold")
    blocks[..., _MINIMUM] = after.astype("<f2")[..., None].view(np.uint8)
    return blocks.reshape(stored.shape)


def _blocks(rows: np.ndarray, size: int) -> np.ndarray:
    return rows.reshape(*rows.shape[:-1], -1, size)
