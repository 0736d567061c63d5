"""The settings that encoders have and decoders have not: kinds of tokens, labels, the padding."""

from __future__ import annotations

import dataclasses
from typing import Any

from jlora._words import one_line
from jlora.models._families._settings import Same, Settings

SIZES = Same(
    {
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "max_length": "max_position_embeddings",
        "types": "type_vocab_size",
        "norm_epsilon": "layer_norm_eps",
    }
)
PADDING = Same({"padding": "pad_token_id"})  # behind whose number positions begin

_CLASSIFIES = "ForSequenceClassification"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of a head for classification, which only one of a family's classes has."""

    architecture: str  # without what stands behind: "Bert"

    def read(self, settings: Settings) -> dict[str, Any]:
        """labels."""
        classes = settings.get("architectures", [])
        names, count = settings.get("id2label", {}), settings.whole("num_labels", needed=False)
        settings.asked.add("label2id")
        if not any(str(each).endswith(_CLASSIFIES) for each in classes):
            return {"labels": ()}
        if not names:
            return {"labels": tuple(f"LABEL_{at}" for at in range(2 if count is None else count))}
        by_number = {str(at): str(name) for at, name in names.items()}
        if by_number.keys() != {str(at) for at in range(len(by_number))}:
            settings.problems.append(
                f"id2label is {one_line(repr(names), 60)}: expected a label for each number from 0 "
                "on"
            )
            return {}
        return {"labels": tuple(by_number[str(at)] for at in range(len(by_number)))}

    def write(self, config: Any) -> dict[str, Any]:
        """The class and the labels, where there is a head."""
        if not config.labels:
            return {}
        return {
            "architectures": [f"{self.architecture}{_CLASSIFIES}"],
            "id2label": {str(at): name for at, name in enumerate(config.labels)},
            "label2id": {name: at for at, name in enumerate(config.labels)},
        }
