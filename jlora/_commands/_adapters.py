"""The adapters that a command is given, several of them summed with their weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jlora._weighted import Weighted


class Adapter(NamedTuple):
    """A saved adapter, or the sum of several, and what was saved beside it."""

    lora: Any
    config: Any  # jlora.LoraConfig
    bases: tuple[Any, ...]  # the fingerprints of the base that were saved
    metadata: dict[str, Any]
    vocabulary: Any  # jlora.models.Vocabulary: what the adapter asks of the base's
    labels: tuple[str, ...]  # that a head of its own scores


def check(adapters: Sequence[Weighted]) -> None:
    """Nothing, where weights are numbers by which something can be multiplied.

    Raises:
        ValueError: where one is none.
    """
    for name, weight in adapters:
        if not math.isfinite(weight) or not weight:
            raise ValueError(
                f"the adapter {name} has the weight {weight}: expected a number, not 0"
            )


def summed(parts: Sequence[Adapter], adapters: Sequence[Weighted]) -> Adapter:
    """The adapters as one, times their weights; one alone of weight 1 is as it was saved.

    What was saved beside is the first one's.

    Raises:
        ValueError: when they have no sum, or one adds tokens to its base.
    """
    first = parts[0]
    if not _has_to_be_summed(adapters):
        return first
    for part, its in zip(parts, adapters, strict=True):
        if part.vocabulary.more or part.vocabulary.untied:
            raise ValueError(
                f"{its.name} has a vocabulary of its own, so it can't be summed with others or "
                "weighted: merge it into its base first, python -m jlora merge"
            )
    heads = [part.labels for part in parts if part.labels]
    return first._replace(
        lora=combined([part.lora for part in parts], adapters),
        config=dataclasses.replace(first.config, rslora=False, init="kaiming"),
        bases=tuple(base for part in parts for base in part.bases),
        labels=heads[0] if heads else (),
    )


def combined(loras: Sequence[Mapping[str, Any]], adapters: Sequence[Weighted]) -> Any:
    """The sum of the adapters' changes, times their weights.

    Raises:
        ValueError: naming the adapters, when they have no sum.
    """
    import jlora

    if not _has_to_be_summed(adapters):
        return loras[0]
    try:
        return jlora.combine(loras, [its.weight for its in adapters])
    except ValueError as error:
        names = ", ".join(f"{its.name} ({its.weight:g})" for its in adapters)
        raise ValueError(f"{names}: {error}") from None


def _has_to_be_summed(adapters: Sequence[Weighted]) -> bool:
    return len(adapters) > 1 or adapters[0].weight != 1
