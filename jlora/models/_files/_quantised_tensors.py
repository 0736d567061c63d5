"""Quantised tensors of a Hugging Face folder as the weights that they stand for.

They are dequantised when they are read, or kept as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jlora import _words
from jlora._safetensors import Header
from jlora.models._files import (
    _bitsandbytes_tensors,
    _fp8_tensors,
    _llm_int8_tensors,
    _mxfp4_tensors,
)
from jlora.models._files._kept import Kept
from jlora.models._files._stacking import Opened
from jlora.models._files._tensor import Tensor


def dequantised(opened: Opened, files: Mapping[str, tuple[str, Header]], settings: Any) -> Opened:
    """The same with every quantised weight as one tensor, which is dequantised when it is read.

    A weight counts as of the dtype in which its model was computed; it is read as float32.

    Args:
        opened: a folder that names the tensors as they stand in the files.
        files: of each of them its name there, and what its file says of it.
        settings: ``quantization_config`` of config.json, if there is one.

    Raises:
        ValueError: naming every weight whose parts do not fit each other.
    """
    tensors = {name: header for name, (_, header) in files.items()}
    its = (
        _fp8_tensors.weights(opened, tensors, settings or {}),
        _mxfp4_tensors.weights(opened, tensors),
        _bitsandbytes_tensors.weights(opened, tensors),
        _llm_int8_tensors.weights(opened, tensors),
    )
    found = {name: weight for weights, _ in its for name, weight in weights.items()}
    if problems := [problem for _, problems in its for problem in problems]:
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
        return Tensor(weight.shape, weight.grain, weight.read)

    def dtype(name: str) -> np.dtype:
        return found[name].dtype() if name in found else opened.dtype(name)

    def kept(name: str) -> Kept | None:
        return found[name].kept() if name in found else None

    others = {name: shape for name, shape in opened.shapes.items() if name not in parts}
    shapes = {**others, **{name: weight.shape for name, weight in found.items()}}
    return dataclasses.replace(opened, shapes=shapes, tensor=tensor, dtype=dtype, kept=kept)
