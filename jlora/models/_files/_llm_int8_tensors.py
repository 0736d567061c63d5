"""Weights of 8 bits in a folder that bitsandbytes wrote: whole numbers, and the largest of a row.

``NAME.weight`` is int8 (out, in), whatever the module holds; ``NAME.SCB`` the largest magnitude of
each row, which 127 stands for; ``NAME.weight_format`` the order of the numbers, 0 for rows
(LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from jlora._quantised import Int8Weight
from jlora._safetensors import Header
from jlora.models._files import _boxes
from jlora.models._files._boxes import Box
from jlora.models._files._kept import Kept, Numbers
from jlora.models._files._quantised_weight import QuantisedTensor, misfits, turned_names
from jlora.models._files._shards import DTYPES
from jlora.models._files._stacking import Opened
from jlora.models._files._tensor import Tensor

_LARGEST, _ORDER = ".SCB", ".weight_format"
_INT8, _FLOAT32 = np.dtype(np.int8), np.dtype(np.float32)
_STEP = np.float32(1 / 127)  # bitsandbytes multiplies


def weights(
    opened: Opened, tensors: Mapping[str, Header]
) -> tuple[dict[str, QuantisedTensor], list[str]]:
    """The weights by name, and what does not fit.

    Args:
        opened: a folder that names the tensors as they stand in the files.
        tensors: what the files say of them.
    """
    stems = [name.removesuffix(_LARGEST) for name in tensors if name.endswith(_LARGEST)]
    if not stems:
        return {}, []
    turned = turned_names(opened)
    found: dict[str, QuantisedTensor] = {}
    problems: list[str] = []
    for stem in stems:
        name = f"{stem}.weight"
        if name not in tensors:
            problems.append(f"{stem}{_LARGEST} is there without {name}")
            continue
        shape, dtype, *_ = tensors[name]
        if dtype != "I8" or len(shape) != 2:
            problems.append(f"{name} is {dtype} of shape {shape}, expected I8 (out, in)")
            continue
        problems += misfits(name, tensors, f"{stem}{_LARGEST}", shape[:1], tuple(DTYPES))
        its = _Weight(opened, stem, shape, turned(name), tensors.get(f"{stem}{_ORDER}"))
        found[name] = its.tensor()
    return found, problems


@dataclasses.dataclass(frozen=True)
class _Weight:
    """One of them: where it stands."""

    opened: Opened
    stem: str
    matrix: tuple[int, ...]  # (out, in)
    turned: bool  # whether the weight that it stands for is (in, out) in a plain folder
    order: Header | None

    def tensor(self) -> QuantisedTensor:
        """What is known of it before it is read."""
        order = (f"{self.stem}{_ORDER}",) if self.order is not None else ()
        return QuantisedTensor(
            self.matrix[::-1] if self.turned else self.matrix,
            (f"{self.stem}.weight", f"{self.stem}{_LARGEST}", *order),
            (1, 1),
            self._decoded,
            self._kept,
            self._dtype,
        )

    def _dtype(self) -> np.dtype:
        """That of the embedding: the files say no more of what the model was computed in.

        Raises:
            ValueError: when the numbers stand in an order that is not that of rows.
        """
        if self.order is not None and self.order.start > 0:  # the file is here
            name = f"{self.stem}{_ORDER}"
            if order := int(self.opened.read(name).max()):
                raise ValueError(
                    f"{name} is {order}, an order of some GPUs: expected 0, rows. Save the model "
                    "anew with the bitsandbytes of today"
                )
        return self.opened.dtype(self.opened.leaves["embed/embedding"].name)

    def _decoded(self, box: Box) -> np.ndarray:
        rows, columns = box[::-1] if self.turned else box
        values = self.opened.tensor(f"{self.stem}.weight").part((rows, columns))
        scale = self._scale[rows.start : rows.stop, None]
        matrix = values.astype(np.float32) * scale
        return matrix.T if self.turned else matrix

    def _kept(self) -> Kept:
        scale = Tensor(self.matrix[:1], (1,), lambda box: self._scale[_boxes.index(box)])
        arrays = {
            "values": Numbers(self.opened.tensor(f"{self.stem}.weight"), _INT8),
            "scale": Numbers(scale, _FLOAT32),
        }
        return Kept(Int8Weight, (), arrays, turned=self.turned)

    @functools.cached_property  # each part of a row asks for it, and no byte is read twice
    def _scale(self) -> np.ndarray:
        """float32 (out,)."""
        return self.opened.read(f"{self.stem}{_LARGEST}").reshape(-1).astype(np.float32) * _STEP
