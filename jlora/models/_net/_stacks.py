"""A decoder as stacks of like layers: each is one scan over parameters of one shape.

Where all layers are alike there is one stack, ``layers``. Where there are more, each stands under
``layers`` by the numbers of its first and last layer: ``layers/0-2``, ``layers/3-60``.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from jlora.models._net._config import DecoderConfig


class Stack(NamedTuple):
    """Layers of one kind, one behind the other."""

    layers: range  # their numbers
    config: DecoderConfig  # by which each of them computes

    @property
    def name(self) -> str:
        """The first and the last number, which `jlora._paths.span` reads."""
        return f"{self.layers[0]}-{self.layers[-1]}"


def stacks(config: DecoderConfig) -> tuple[Stack, ...]:
    """The stacks in the order in which they are run."""
    if config.dense_layers is None:
        return (Stack(range(config.layers), config),)
    dense = dataclasses.replace(config, experts=None, dense_layers=None)
    return (
        Stack(range(config.dense_layers), dense),
        Stack(range(config.dense_layers, config.layers), config),
    )
