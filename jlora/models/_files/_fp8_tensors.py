"""Weights of 8 bits in a folder: numbers of ``float8_e4m3fn``, and a scale for each block of them.

The scales are ``NAME_scale_inv``. With ``scale_fmt`` ue8m0 they are powers of two, held as floats
or as the exponent alone (E8M0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jlora._quantised import Fp8Weight
from jlora._safetensors import Header
from jlora.models._files._boxes import Box
from jlora.models._files._kept import Kept, Numbers
from jlora.models._files._quantised_weight import QuantisedTensor, in_blocks, misfits
from jlora.models._files._shards import DTYPES
from jlora.models._files._stacking import Opened
from jlora.models._files._tensor import Tensor, all_at_once

_FP8, _POWERS, _BYTES = "F8_E4M3", "F8_E8M0", "U8"
# E8M0: powers of two from 2**-127 on, and what is no number.
E8M0 = np.array([*(2.0 ** (exponent - 127) for exponent in range(255)), np.nan], np.float32)
_DEFAULT_BLOCK = (128, 128)
_NUMBERS, _FLOAT32 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(np.float32)


def weights(
    opened: Opened, tensors: Mapping[str, Header], settings: Mapping[str, Any]
) -> tuple[dict[str, QuantisedTensor], list[str]]:
    """The weights by name, and what does not fit.

    Args:
        opened: a folder that names the tensors as they stand in the files.
        tensors: what the files say of them.
        settings: ``quantization_config`` of config.json.
    """
    block = settings.get("weight_block_size", _DEFAULT_BLOCK)
    as_bytes = (_BYTES,) if settings.get("scale_fmt") == "ue8m0" else ()
    found: dict[str, QuantisedTensor] = {}
    problems: list[str] = []
    for name, (shape, dtype, *_) in tensors.items():
        if dtype != _FP8:
            continue
        if len(shape) < 2:
            problems.append(f"{name} has shape {shape}: expected blocks of rows and columns")
            continue
        scales = f"{name}_scale_inv"
        sizes = shape[-2:] if block is None else tuple(map(min, block, shape[-2:]))
        counts = [-(-n // size) for n, size in zip(shape[-2:], sizes, strict=True)]
        wanted = (*shape[:-2], *counts)
        problems += misfits(name, tensors, scales, wanted, (*DTYPES, _POWERS, *as_bytes))
        if scales in tensors:
            found[name] = _weight(opened, name, scales, shape, sizes, wanted)
    return found, problems


def _weight(
    opened: Opened,
    name: str,
    scales: str,
    shape: tuple[int, ...],
    sizes: tuple[int, ...],
    counts: tuple[int, ...],
) -> QuantisedTensor:
    def read(box: Box) -> np.ndarray:
        rows, columns = (in_blocks(*each) for each in zip(box[-2:], sizes, strict=True))
        if math.prod(counts) == 1:  # whatever its shape
            held = opened.read(scales).reshape(counts)
        else:
            held = opened.tensor(scales).part((*box[:-2], rows, columns))
        return of_fp8(opened.tensor(name).part(box), scales_of(held), sizes)

    def kept() -> Kept:
        held = opened.tensor(scales)
        scale = Tensor(counts, held.grain, lambda box: scales_of(held.read(box)))
        if held.shape != counts:
            scale = all_at_once(counts, lambda: scales_of(held.whole()).reshape(counts))
        values = Numbers(opened.tensor(name), np.dtype(np.uint8))
        arrays = {"values": values, "scale": Numbers(scale, _FLOAT32)}
        return Kept(Fp8Weight, (("sizes", sizes),), arrays, rows=sizes[0])

    grain = (*(1,) * len(shape[2:]), *sizes)
    return QuantisedTensor(shape, (name, scales), grain, read, kept)


def scales_of(held: np.ndarray) -> np.ndarray:
    """float32, of floats or of exponents alone."""
    return E8M0[held] if held.dtype == np.uint8 else held.astype(np.float32)


def of_fp8(bits: np.ndarray, scales: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The weight of float8 numbers (*stack, out, in) and scales of blocks of this size."""
    wide = bits.view(_NUMBERS).astype(np.float32)
    for axis, size in zip((-2, -1), sizes, strict=True):
        scales = np.repeat(scales, size, axis=axis)
    return wide * scales[..., : wide.shape[-2], : wide.shape[-1]]
