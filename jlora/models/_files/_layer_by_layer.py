"""A model taken apart: one layer of one leaf at a time, and the tensors of a file that it makes."""

from __future__ import annotations

import dataclasses

import numpy as np

from jlora.models import _families
from jlora.models._files._stacking import expected_shapes, layers_of, per_layer, stacked, stored_of
from jlora.models._files._torch_tensors import Stored, stored_shapes, to_stored
from jlora.models._net._encoder_config import Config

_BEFORE = ("embed/", "positions/", "types/", "embed_norm/")  # the layers


@dataclasses.dataclass(frozen=True)
class Piece:
    """One layer of a leaf, or a leaf that has no layers."""

    path: str
    layer: int | None  # its number in the model
    at: int | None  # its place in the leaf
    shape: tuple[int, ...]  # as the model has it, without the stack's dimension

    def __str__(self) -> str:
        return self.path if self.layer is None else f"{self.path} of layer {self.layer}"


def pieces(config: Config) -> list[Piece]:
    """All pieces of such a model, from the embedding through the layers to the head."""
    shapes = expected_shapes(config)
    before = [path for path in shapes if path.startswith(_BEFORE)]
    within = [path for path in shapes if stacked(path)]
    layers: dict[int, list[Piece]] = {}
    for path in within:
        for at, layer in enumerate(layers_of(path, shapes[path])):
            piece = Piece(path, layer, at, per_layer(path, shapes[path]))
            layers.setdefault(layer, []).append(piece)
    after = [path for path in shapes if path not in {*before, *within}]
    return [
        *(Piece(path, None, None, shapes[path]) for path in before),
        *(piece for layer in range(config.layers) for piece in layers[layer]),
        *(Piece(path, None, None, shapes[path]) for path in after),
    ]


def shapes_in_file(config: Config, piece: Piece) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors that the piece makes in a Hugging Face folder."""
    return stored_shapes(_leaf(config, piece), piece.layer or 0, piece.shape)


def in_file(config: Config, piece: Piece, value: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors themselves, by name."""
    return to_stored(_leaf(config, piece), piece.layer or 0, value)


def is_buffer(config: Config, piece: Piece) -> bool:
    """Whether it keeps its dtype, whatever that of the rest."""
    return _leaf(config, piece).kind == "buffer"


def _leaf(config: Config, piece: Piece) -> Stored:
    return stored_of(_families.family_of(config.family, "the model").leaves, piece.path)
