"""Quantised tensors of a Hugging Face folder as the weights that they stand for.

fp8: a weight of ``float8_e4m3fn`` beside one scale for each of its blocks, ``NAME_scale_inv``. With
``scale_fmt`` ue8m0 scales are powers of two, held as floats or as the exponent alone (E8M0).
mxfp4: ``NAME_blocks``, two numbers of 4 bits to a byte, 32 to a block, and ``NAME_scales``, the
exponent of each block (OCP Microscaling Formats 1.0, E2M1 and E8M0); the weight is transposed.
Both are dequantised when they are read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jlora import _words
from jlora._safetensors import Header
from jlora.models._files import _boxes
from jlora.models._files._boxes import Box
from jlora.models._files._shards import DTYPES
from jlora.models._files._stacking import Opened
from jlora.models._files._tensor import Tensor

_FP8, _POWERS, _BYTES = "F8_E4M3", "F8_E8M0", "U8"
_SCALE, _BLOCKS, _EXPONENTS = "_scale_inv", "_blocks", "_scales"
_IN_A_BLOCK, _BYTES_OF = 32, 16  # numbers of a block, and the bytes that hold them
# E8M0: powers of two from 2**-127 on, and what is no number.
_E8M0 = np.array([*(2.0 ** (exponent - 127) for exponent in range(255)), np.nan], np.float32)
# E2M1 by its four bits: the sign, then two of the exponent and one of the mantissa.
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = np.array([*_MAGNITUDES, *(-each for each in _MAGNITUDES)], np.float32)
# The two numbers of a byte, that of its low bits first.
_PAIRS = np.stack([_E2M1[np.arange(256) % 16], _E2M1[np.arange(256) // 16]], axis=-1)
_DEFAULT_BLOCK = (128, 128)
_COUNTS_AS = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight that stands in a file as several tensors."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]  # the tensors' names
    dequantised: Callable[..., np.ndarray]  # of the parts, float32
    grain: tuple[int, ...]  # of the last two dimensions, as `Tensor` has it
    boxes: Callable[[Box], Sequence[Box]]  # of the parts, for one of the weight


def dequantised(opened: Opened, files: Mapping[str, tuple[str, Header]], settings: Any) -> Opened:
    """The same with every quantised weight as one tensor, which is dequantised when it is read.

    A weight counts as bfloat16, in which its model was computed; it is read as float32.

    Args:
        opened: a folder that names the tensors as they stand in the files.
        files: of each of them its name there, and what its file says of it.
        settings: ``quantization_config`` of config.json, if there is one.

    Raises:
        ValueError: naming every weight whose parts do not fit each other.
    """
    tensors = {name: header for name, (_, header) in files.items()}
    found, problems = _weights(tensors, settings)
    if problems:
        raise ValueError(
            f"{opened.where}: quantised weights can't be read:{_words.first_few(problems, 8)}"
        )
    if not found:
        return opened
    parts = {part for weight in found.values() for part in weight.parts}

    def tensor(name: str) -> Tensor:
        if name not in found:
            return opened.tensor(name)
        weight = found[name]

        def read(box: Box) -> np.ndarray:
            its = zip(weight.parts, weight.boxes(box), strict=True)
            return weight.dequantised(*(opened.tensor(part).part(each) for part, each in its))

        return Tensor(weight.shape, (*(1,) * len(weight.shape[2:]), *weight.grain), read)

    kept = {name: shape for name, shape in opened.shapes.items() if name not in parts}
    return dataclasses.replace(
        opened,
        shapes={**kept, **{name: weight.shape for name, weight in found.items()}},
        tensor=tensor,
        dtype=lambda name: _COUNTS_AS if name in found else opened.dtype(name),
    )


def _weights(tensors: Mapping[str, Header], settings: Any) -> tuple[dict[str, Weight], list[str]]:
    """The quantised weights, by the names that they would have as they are; what does not fit."""
    block = (settings or {}).get("weight_block_size", _DEFAULT_BLOCK)
    as_bytes = (_BYTES,) if (settings or {}).get("scale_fmt") == "ue8m0" else ()
    scale_dtypes = (*DTYPES, _POWERS, *as_bytes)
    found: dict[str, Weight] = {}
    problems: list[str] = []
    for name, (shape, dtype, *_) in tensors.items():
        if dtype == _FP8 and len(shape) < 2:
            problems.append(f"{name} has shape {shape}: expected blocks of rows and columns")
        elif dtype == _FP8:
            scales = f"{name}{_SCALE}"
            sizes = shape[-2:] if block is None else tuple(block)
            counts = [-(-n // size) for n, size in zip(shape[-2:], sizes, strict=True)]
            problems += _misfits(name, tensors, scales, (*shape[:-2], *counts), scale_dtypes)
            if scales in tensors:
                boxes = _boxes_of_fp8(sizes, tensors[scales].shape)
                found[name] = Weight(shape, (name, scales), _of_fp8(sizes), sizes, boxes)
        elif dtype == _BYTES and name.endswith(_BLOCKS) and shape[2:][-1:] == (_BYTES_OF,):
            stem, (*stack, out, blocks, _) = name.removesuffix(_BLOCKS), shape
            scales = f"{stem}{_EXPONENTS}"
            problems += _misfits(stem, tensors, scales, shape[:-1], (_BYTES,))
            its = (*stack, blocks * _IN_A_BLOCK, out)
            grain = (_IN_A_BLOCK, 1)
            found[stem] = Weight(its, (name, scales), of_mxfp4, grain, _boxes_of_mxfp4)
    return found, problems


def _misfits(
    name: str,
    tensors: Mapping[str, Header],
    scales: str,
    wanted: tuple[int, ...],
    dtypes: tuple[str, ...],
) -> list[str]:
    if scales not in tensors:
        return [f"{name} has no scales, {scales}"]
    shape, dtype, *_ = tensors[scales]
    one = math.prod(shape) == math.prod(wanted) == 1  # a scale for the whole weight
    problems = [] if shape == wanted or one else [f"has shape {shape}, expected {wanted}"]
    if dtype not in dtypes:
        problems.append(f"is of dtype {dtype}, expected {' or '.join(dtypes)}")
    return [f"{scales} {problem}" for problem in problems]


def _of_fp8(sizes: tuple[int, ...]) -> Callable[..., np.ndarray]:
    """The weight of float8 numbers (*stack, out, in) and scales of blocks of this size."""

    def dequantised(bits: np.ndarray, scales: np.ndarray) -> np.ndarray:
        wide = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        scales = _E8M0[scales] if scales.dtype == np.uint8 else scales.astype(np.float32)
        if scales.size == 1:  # whatever its shape
            scales = scales.reshape((1,) * wide.ndim)
        for axis, size in zip((-2, -1), sizes, strict=True):
            scales = np.repeat(scales, size, axis=axis)
        return wide * scales[..., : wide.shape[-2], : wide.shape[-1]]

    return dequantised


def _boxes_of_fp8(sizes: Sequence[int], scales: tuple[int, ...]) -> Callable[[Box], Sequence[Box]]:
    def boxes(box: Box) -> Sequence[Box]:
        if math.prod(scales) == 1:
            return box, _boxes.whole(scales)
        return box, (*box[:-2], *map(_in_blocks, box[-2:], sizes))

    return boxes


def of_mxfp4(blocks: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """(*stack, in, out) float32 of (*stack, out, blocks, 16) bytes and (*stack, out, blocks)."""
    numbers = _PAIRS[blocks].reshape(*blocks.shape[:-1], _IN_A_BLOCK)
    numbers *= _E8M0[exponents][..., None]
    return numbers.reshape(*blocks.shape[:-2], -1).swapaxes(-1, -2)


def _boxes_of_mxfp4(box: Box) -> Sequence[Box]:
    *stack, within, out = box
    scales = (*stack, out, _in_blocks(within, _IN_A_BLOCK))
    return (*scales, range(_BYTES_OF)), scales


def _in_blocks(side: range, size: int) -> range:
    """The blocks of a range that begins with one."""
    return range(side.start // size, -(-side.stop // size))
