"""A weight that stands in a folder as several tensors: what each format says of it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from jlora._safetensors import Header
from jlora.models._files._boxes import Box
from jlora.models._files._kept import Kept
from jlora.models._files._stacking import Opened

_COUNTS_AS = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class QuantisedTensor:
    """A weight, before it is read."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]  # the tensors' names
    grain: tuple[int, ...]  # as `Tensor` has it
    read: Callable[[Box], np.ndarray]  # float32: what a box of it stands for
    kept: Callable[[], Kept | None]  # as it is stored, for a leaf
    dtype: Callable[[], np.dtype] = lambda: _COUNTS_AS  # in which its model was computed


def misfits(
    name: str,
    tensors: Mapping[str, Header],
    scales: str,
    wanted: tuple[int, ...],
    dtypes: tuple[str, ...],
) -> list[str]:
    """What is wrong with the scales of a weight."""
    if scales not in tensors:
        return [f"{name} has no scales, {scales}"]
    shape, dtype, *_ = tensors[scales]
    one = math.prod(shape) == math.prod(wanted) == 1  # a scale for the whole weight
    problems = [] if shape == wanted or one else [f"has shape {shape}, expected {wanted}"]
    if dtype not in dtypes:
        problems.append(f"is of dtype {dtype}, expected {' or '.join(dtypes)}")
    return [f"{scales} {problem}" for problem in problems]


def in_blocks(side: range, size: int) -> range:
    """The blocks of a range that begins with one."""
    return range(side.start // size, -(-side.stop // size))


def turned_names(opened: Opened) -> Callable[[str], bool]:
    """Which tensors a plain folder has as (in, out), and bitsandbytes as (out, in) all the same."""
    turned = {_numbered(its.name) for its in opened.leaves.values() if its.kind == "conv1d"}
    return lambda name: _numbered(name) in turned


def _numbered(name: str) -> str:
    return re.sub(r"\d+", "{}", name)
