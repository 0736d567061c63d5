"""Weights of 4 bits in a folder: MXFP4, as gpt-oss has its experts.

``NAME_blocks`` is two numbers of 4 bits to a byte, 32 to a block, and ``NAME_scales`` the exponent
of each block (OCP Microscaling Formats 1.0, E2M1 and E8M0); the weight is transposed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jlora._quantised import BlockWeight
from jlora._quantised._mxfp4 import E2M1
from jlora._safetensors import Header
from jlora.models._files._boxes import Box
from jlora.models._files._fp8_tensors import E8M0
from jlora.models._files._kept import Kept, Numbers
from jlora.models._files._quantised_weight import QuantisedTensor, in_blocks, misfits
from jlora.models._files._stacking import Opened
from jlora.models._files._tensor import Tensor

_BLOCKS, _EXPONENTS, _BYTES = "_blocks", "_scales", "U8"
_IN_A_BLOCK, _BYTES_OF = 32, 16  # numbers of a block, and the bytes that hold them
# The two numbers of a byte, that of its low bits first.
_PAIRS = np.stack([E2M1[np.arange(256) % 16], E2M1[np.arange(256) // 16]], axis=-1)


def weights(
    opened: Opened, tensors: Mapping[str, Header]
) -> tuple[dict[str, QuantisedTensor], list[str]]:
    """The weights by name, and what does not fit.

    Args:
        opened: a folder that names the tensors as they stand in the files.
        tensors: what the files say of them.
    """
    found: dict[str, QuantisedTensor] = {}
    problems: list[str] = []
    for blocks, (shape, dtype, *_) in tensors.items():
        if dtype == _BYTES and blocks.endswith(_BLOCKS) and shape[2:][-1:] == (_BYTES_OF,):
            name = blocks.removesuffix(_BLOCKS)
            scales = f"{name}{_EXPONENTS}"
            problems += misfits(name, tensors, scales, shape[:-1], (_BYTES,))
            found[name] = _weight(opened, blocks, scales, shape)
    return found, problems


def _weight(opened: Opened, blocks: str, scales: str, shape: tuple[int, ...]) -> QuantisedTensor:
    def read(box: Box) -> np.ndarray:
        *within, inputs, outputs = box
        its = (*within, outputs, in_blocks(inputs, _IN_A_BLOCK))
        bytes_of = opened.tensor(blocks).part((*its, range(_BYTES_OF)))
        return of_mxfp4(bytes_of, opened.tensor(scales).part(its))

    def kept() -> Kept:
        *rows, count, _ = shape
        size = 1 + _BYTES_OF
        data = Tensor((*rows, count * size), (*(1,) * len(rows), size), read_bytes)
        arrays = {"data": Numbers(data, np.dtype(np.uint8))}
        return Kept(BlockWeight, (("format", "MXFP4"),), arrays, turned=True)

    def read_bytes(box: Box) -> np.ndarray:
        *rows, side = box
        its = (*rows, in_blocks(side, 1 + _BYTES_OF))
        bytes_of = opened.tensor(blocks).part((*its, range(_BYTES_OF)))
        return packed(bytes_of, opened.tensor(scales).part(its))

    parts = (blocks, scales)
    *stack, out, count, _ = shape
    whole = (*stack, count * _IN_A_BLOCK, out)
    grain = (*(1,) * len(stack), _IN_A_BLOCK, 1)
    return QuantisedTensor(whole, parts, grain, read, kept)


def of_mxfp4(blocks: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """(*stack, in, out) float32 of (*stack, out, blocks, 16) bytes and (*stack, out, blocks)."""
    numbers = _PAIRS[blocks].reshape(*blocks.shape[:-1], _IN_A_BLOCK)
    numbers *= E8M0[exponents][..., None]
    return numbers.reshape(*blocks.shape[:-2], -1).swapaxes(-1, -2)


def packed(blocks: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """The same as llama.cpp's blocks side by side: the exponent, then byte i has numbers i, 16 + i.

    uint8 (*stack, out, 17 bytes of each block).
    """
    *rows, count, size = blocks.shape
    made = np.empty((*rows, count, 1 + size), np.uint8)
    made[..., 0] = exponents
    half = size // 2  # bytes of the first 16 numbers, two to a byte
    first, second = blocks[..., :half], blocks[..., half:]
    made[..., 1::2] = first & 15 | second << 4
    made[..., 2::2] = first >> 4 | second & 0xF0
    return made.reshape(*rows, count * (1 + size))
