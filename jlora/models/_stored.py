"""Which layer of which leaf each tensor of a Hugging Face folder holds, and how it lies there."""

from __future__ import annotations

import dataclasses

import numpy as np

from jlora.models import _families
from jlora.models._assemble import expected, in_file, stacked
from jlora.models._config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a Hugging Face folder."""

    name: str
    shape: tuple[int, ...]
    path: str  # the leaf
    layer: int | None  # of the leaf; None where it has no layers

    def written(self, weight: np.ndarray) -> np.ndarray:
        """The weight, as the decoder has it, in the tensor's orientation."""
        return weight.T if self.path.endswith("/kernel") else weight


def stored(config: DecoderConfig) -> list[Stored]:
    """Every tensor of such a model, from the embedding through the layers to the head."""
    names = _families.family_of(config.family, "").huggingface
    tensors = []
    for path, shape in expected(config).items():
        if not stacked(path):
            tensors.append(Stored(names[path], in_file(path, shape), path, None))
            continue
        for layer in range(shape[0]):
            name = names[path].format(layer)
            tensors.append(Stored(name, in_file(path, shape[1:]), path, layer))
    order = list(names)
    first = next(at for at, path in enumerate(order) if stacked(path))

    def place(tensor: Stored) -> tuple[int, int, int]:
        at = order.index(tensor.path)
        return (
            int(at >= first) + int(not stacked(tensor.path) and at >= first),
            tensor.layer or 0,
            at,
        )

    return sorted(tensors, key=place)
