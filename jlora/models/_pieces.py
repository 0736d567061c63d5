"""A model taken apart: one layer of one leaf at a time, and the tensors of a file that it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jlora.models import _families
from jlora.models._assemble import expected, stacked
from jlora.models._config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Piece:
    """One layer of a leaf, or a leaf that has no layers."""

    path: str
    layer: int | None
    shape: tuple[int, ...]  # as the decoder has it, without the stack's dimension

    def __str__(self) -> str:
        return self.path if self.layer is None else f"{self.path} of layer {self.layer}"


def pieces(config: DecoderConfig) -> list[Piece]:
    """All pieces of such a model, from the embedding through the layers to the head."""
    shapes = expected(config)
    before = [path for path in shapes if not stacked(path) and path.startswith("embed")]
    within = [path for path in shapes if stacked(path)]
    after = [path for path in shapes if path not in {*before, *within}]
    return [
        *(Piece(path, None, shapes[path]) for path in before),
        *(
            Piece(path, layer, shapes[path][1:])
            for layer in range(config.layers)
            for path in within
        ),
        *(Piece(path, None, shapes[path]) for path in after),
    ]


def shapes_in_file(config: DecoderConfig, piece: Piece) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors that the piece makes in a Hugging Face folder."""
    nothing = np.broadcast_to(np.int8(0), piece.shape)
    return {name: tensor.shape for name, tensor in in_file(config, piece, nothing).items()}


def in_file(config: DecoderConfig, piece: Piece, value: np.ndarray) -> Mapping[str, np.ndarray]:
    """The tensors themselves, by name."""
    names = _families.family_of(config.family, "").huggingface
    tensor = value.T if piece.path.endswith("/kernel") else value
    return {names[piece.path].format(piece.layer): tensor}
