"""Leaves that are saved whole: PEFT's ``modules_to_save``, and biases."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from jlora._lora_dict import Lora
from jlora._lowrank import promoted
from jlora._methods import WholeWeight
from jlora.peft import _matching
from jlora.peft._file import AdapterFile
from jlora.peft._layout import Leaf, Parameter, Part

BASE_COPY = ".base_layer.weight"
_BASE_BIAS = ".base_layer.bias"


def read(file: AdapterFile) -> Lora:
    """The nodes of all leaves that the file has whole; what is wrong goes to its problems."""
    found: dict[str, list[tuple[Part, np.ndarray]]] = {}
    for name in list(file.left):
        copied = name.endswith(BASE_COPY)
        inside = ".base_layer." if name.endswith((BASE_COPY, _BASE_BIAS)) else "."
        full = ".".join(name.rsplit(inside, 1))
        parameter = file.layout.parameters.get(full)
        if parameter is None:
            continue
        tensor = file.take(name)
        assert tensor is not None
        if tensor.shape != parameter.shape_in_torch:
            file.problems.append(f"{name}: expected {parameter.shape_in_torch}, got {tensor.shape}")
            continue
        own = _matching.is_saved(file.settings, parameter.module) or parameter.name == "bias"
        if not own and _is_base(file, parameter, tensor):
            continue  # PEFT keeps a copy of a table beside an adapter of it
        if copied:
            file.problems.append(f"{name}: another base than the model's")
            continue
        ours = parameter.from_torch(tensor)
        for part in parameter.parts:
            found.setdefault(part.leaf.path, []).append((part, ours[..., part.theirs]))
    _check_saved(file)
    return {
        path: WholeWeight(jnp.asarray(_joined(file.layout.leaves[path], pieces)))
        for path, pieces in found.items()
    }


def _joined(leaf: Leaf, pieces: list[tuple[Part, np.ndarray]]) -> np.ndarray:
    """The leaf's value: the file's pieces of it, the base's elsewhere, and none of them rounded."""
    dtype = promoted(*(piece.dtype for _, piece in pieces))
    if sum(piece.size for _, piece in pieces) == math.prod(leaf.shape):
        value = leaf.matrices(np.zeros(leaf.shape, dtype))
    else:
        base = np.asarray(leaf.base())
        value = leaf.matrices(base).astype(promoted(dtype, base.dtype))
    for part, piece in pieces:
        value[part.layer][..., part.ours] = piece
    return leaf.from_matrices(value)


def _is_base(file: AdapterFile, parameter: Parameter, tensor: np.ndarray) -> bool:
    leaves = file.layout.leaves
    base = parameter.in_torch(lambda path: leaves[path].matrices(leaves[path].base()))
    return np.array_equal(base, tensor.astype(base.dtype))


def _check_saved(file: AdapterFile) -> None:
    """Every parameter of a module in ``modules_to_save`` must be in the file."""
    for parameter in file.layout.parameters.values():
        saved = _matching.is_saved(file.settings, parameter.module)
        if saved and parameter.full_name not in file.tensors:
            file.problems.append(f"{parameter.full_name}: missing")
