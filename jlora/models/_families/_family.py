"""What one architecture is: a table of its leaves and a list of what its settings say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jlora.models._families._gguf_route import Gguf
from jlora.models._families._settings import Part, Same
from jlora.models._files._torch_tensors import Stored
from jlora.models._net._config import DecoderConfig


def sizes(epsilon: str) -> Same:
    """Settings that most families call the same, but for the norms' epsilon."""
    return Same(
        {
            "vocabulary": "vocab_size",
            "width": "hidden_size",
            "layers": "num_hidden_layers",
            "mlp_width": "intermediate_size",
            "max_length": "max_position_embeddings",
            "norm_epsilon": epsilon,
            "tied": "tie_word_embeddings",
        }
    )


SIZES = sizes("rms_norm_eps")


@dataclasses.dataclass(frozen=True)
class Nested:
    """Where the decoder stands in a model of several parts, of which it is one.

    The tensors of the others begin with one of `Family.tensors_aside`.
    """

    setting: str  # of config.json, that holds the decoder's settings
    model_type: str  # which those give themselves
    # Settings that count where they stand beside the decoder's own.
    outside: tuple[str, ...] = ("tie_word_embeddings", "quantization_config", "eos_token_id")
    # Settings of the whole model alone, which the decoder's part does not repeat.
    whole: tuple[str, ...] = ("architectures", "id2label", "label2id", "num_labels")


@dataclasses.dataclass(frozen=True)
class Family:
    """How one architecture's files and settings map onto the decoder, or onto the encoder."""

    architecture: str  # the class in transformers
    leaves: Mapping[str, Stored]  # our path -> the parameter in transformers, of every variant
    parts: tuple[Part, ...]  # settings that differ from model to model
    features: Mapping[str, Any]  # fields that are the same in every model of the family
    # Settings that a config.json may leave out, as transformers takes them then.
    defaults: Mapping[str, Any]
    # Settings of which the decoder has some values only.
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    nested: Nested | None = None
    # Settings that say nothing of the decoder, beside those that no family's do.
    settings_aside: frozenset[str] = frozenset()
    # Beginnings of the names of tensors that are no part of the decoder: a vision tower.
    tensors_aside: tuple[str, ...] = ()
    gguf: Gguf | None = None  # where llama.cpp has the architecture
    # The setting that counts layers behind the decoder's, which predict further tokens.
    layers_behind: str | None = None

    # The class with a head for classification, if there is one; "": it is named as the other is.
    classifier: str | None = ""
    # Beginnings of the names of heads' tensors, of which a model of the family has one or none.
    heads_aside: tuple[str, ...] = ()
    read_alone: str = "the decoder"  # what is read of a file that has more
    config: Callable[..., Any] = DecoderConfig  # the record that its fields make
    # Fields that a config.json does not say: whether the tensor of this path is there.
    by_tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Ends of tensors' names as older releases wrote them.
    older_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""  # of a model's names, which one without a head leaves out
    saved_whole: str | None = None  # the module, of several perhaps, that PEFT trains as one

    def beside(self, settings: Mapping[str, Any], layers: int) -> tuple[str, ...]:
        """Beginnings of the names of a model's tensors that are no part of its decoder.

        Args:
            settings: from `flat`.
            layers: of the decoder.
        """
        if self.layers_behind is None:
            return self.tensors_aside
        count = settings.get(self.layers_behind)
        further = range(layers, layers + (count if isinstance(count, int) else 0))
        return (*self.tensors_aside, *(f"layers.{layer}." for layer in further))

    def flat(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The decoder's settings out of a config.json, wherever they stand there."""
        if (nested := self.nested) is None:
            return dict(settings)
        inner = settings.get(nested.setting)
        outside = (*nested.outside, *nested.whole)
        beside = {name: settings[name] for name in outside if name in settings}
        return {
            **(inner if isinstance(inner, Mapping) else {}),
            **beside,
            "model_type": settings["model_type"],
        }

    def unflat(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The contents of a config.json out of the decoder's settings."""
        own = {"architectures": [self.architecture]}
        if (nested := self.nested) is None:
            return {**own, **settings}
        its = {name: value for name, value in settings.items() if name not in nested.whole}
        inner = {**its, "model_type": nested.model_type}
        outside = (*nested.outside, *nested.whole)
        outer = {name: settings[name] for name in outside if name in settings}
        return {**own, "model_type": settings["model_type"], **outer, nested.setting: inner}
