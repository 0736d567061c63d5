"""The head for classification that transformers has of most families, and the labels it scores."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jlora._words import one_line
from jlora.models._families._family import Family
from jlora.models._families._settings import Settings
from jlora.models._files._torch_tensors import Stored, linear
from jlora.models._net._config import DecoderConfig
from jlora.models._net._encoder_config import Config

_CLASSIFIES = "ForSequenceClassification"
_OTHER_CLASS = re.compile("(ForCausalLM|LMHeadModel|ForConditionalGeneration|Model)$")
_SETTINGS = ("architectures", "id2label", "label2id", "num_labels")
HEAD = "classifier/"  # the paths of such a head begin so
CLASSIFIER = f"{HEAD}kernel"  # a decoder's
SCORES = (CLASSIFIER, f"{HEAD}out_proj/kernel")  # what makes the scores, in either kind


def classifying(family: Family) -> Family:
    """The family with what its class for classification has in files and settings, if it has one.

    An encoder's table names the head's tensors itself.
    """
    if family.classifier is None:
        return family
    name = family.classifier or _OTHER_CLASS.sub("", family.architecture) + _CLASSIFIES
    decodes = family.config is DecoderConfig
    leaves = {**family.leaves, CLASSIFIER: linear("score.weight")} if decodes else family.leaves
    parts = (*family.parts, Labels(name, decodes))
    return dataclasses.replace(family, leaves=leaves, parts=parts)


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of a head for classification, which only one of a family's classes has."""

    architecture: str  # that class
    decodes: bool

    def read(self, settings: Settings) -> dict[str, Any]:
        """labels; where a decoder has them its embedding is no head, whatever the settings say."""
        settings.asked.update(_SETTINGS)
        classes = settings.values.get("architectures")
        classes = classes if isinstance(classes, list | tuple) else ()
        if not any(str(each).endswith(_CLASSIFIES) for each in classes):
            return {"labels": ()}
        untied = {"tied": False} if self.decodes else {}
        names, count = settings.get("id2label", {}), settings.whole("num_labels", needed=False)
        if not names:
            count = 2 if count is None else count
            return {"labels": numbered(count), **untied}
        by_number = {str(at): str(name) for at, name in names.items()}
        if by_number.keys() != {str(at) for at in range(len(by_number))}:
            settings.problems.append(
                f"id2label is {one_line(repr(names), 60)}: expected a label for each number from 0 "
                "on"
            )
            return {}
        return {"labels": tuple(by_number[str(at)] for at in range(len(by_number))), **untied}

    def write(self, config: Any) -> dict[str, Any]:
        """The class and the labels, where there is a head."""
        if not config.labels:
            return {}
        return {
            "architectures": [self.architecture],
            "id2label": {str(at): name for at, name in enumerate(config.labels)},
            "label2id": {name: at for at, name in enumerate(config.labels)},
        }


def numbered(count: int) -> tuple[str, ...]:
    """The names of so many labels that have none, as transformers gives them."""
    return tuple(f"LABEL_{at}" for at in range(count))


def named(count: int, config: Config) -> tuple[str, ...]:
    """The names of so many labels: the model's own where it has as many."""
    return config.labels if len(config.labels) == count else numbered(count)


def scored_by(family: Family) -> Stored | None:
    """The weight that makes a score of each label, if the family has such a head."""
    if family.classifier is None:
        return None
    return next(leaf for path, leaf in family.leaves.items() if path in SCORES)


def labels_trained(lora: Mapping[str, Any]) -> int:
    """How many labels the head has that an adapter holds whole; 0 without one."""
    whole = (lora[path] for path in SCORES if path in lora and lora[path].replaces)
    return next((node.shape[-1] for node in whole), 0)


def relabelled(config: Config, labels: tuple[str, ...], family: Family, name: str) -> Any:
    """The configuration of the same model with a head that scores these labels.

    Raises:
        ValueError: when a label is there twice, or the model's family has no such class.
    """
    if family.classifier is None:
        raise ValueError(
            f"{name} is of the family {config.family}, of which transformers has no class with a "
            "head for classification"
        )
    if isinstance(config, DecoderConfig):
        return dataclasses.replace(config, labels=labels, tied=False)
    return dataclasses.replace(config, labels=labels, pooler=not config.own_dense)
