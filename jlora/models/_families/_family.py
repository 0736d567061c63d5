"""What one architecture is: a table of its leaves and a list of what its settings say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora.models._families._settings import Part, Same
from jlora.models._files._torch_tensors import Stored

# Settings that most families call the same.
SIZES = Same(
    {
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "mlp_width": "intermediate_size",
        "max_length": "max_position_embeddings",
        "norm_epsilon": "rms_norm_eps",
        "tied": "tie_word_embeddings",
    }
)
_NEVER: Mapping[str, tuple[Any, ...]] = {"quantization_config": (None,)}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one architecture's files and settings map onto the decoder."""

    architecture: str  # the class in transformers
    leaves: Mapping[str, Stored]  # our path -> the parameter in transformers, of every variant
    parts: tuple[Part, ...]  # settings that differ from model to model
    features: Mapping[str, Any]  # fields that are the same in every model of the family
    # Settings that a config.json may leave out, as transformers takes them then.
    defaults: Mapping[str, Any]
    # Settings of which the decoder has some values only.
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    # Settings that say nothing of the decoder, beside those that no family's do.
    settings_aside: frozenset[str] = frozenset()
    # Beginnings of the names of tensors that are no part of the decoder: a vision tower.
    tensors_aside: tuple[str, ...] = ()

    @property
    def limits(self) -> Mapping[str, tuple[Any, ...]]:
        """`only`, with what holds for all families."""
        return {**_NEVER, **self.only}
