"""A decoder as stacks of like layers: each is scanned over parameters of one shape.

Where all layers are alike there is one stack, ``layers``. Where there are more, each stands under
``layers`` by the numbers of its first and last layer, ``layers/0-2`` and ``layers/3-60``, and by
the step between its layers where that is not one. Stacks that take turns are scanned together:
``layers/0-44-4`` to ``layers/3-47-4`` are twelve times four layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from jlora.models._net._borrowing import OWN, Keys, keys_of
from jlora.models._net._config import DecoderConfig

_LONGEST_PERIOD = 16


class Stack(NamedTuple):
    """Layers of one kind, equally far from each other."""

    layers: range  # their numbers
    config: DecoderConfig  # by which each of them computes
    keys: Keys = OWN  # whose keys and values they read

    @property
    def name(self) -> str:
        """The first and the last number, and the step, which `jlora._paths.span` reads."""
        first_and_last = f"{self.layers[0]}-{self.layers[-1]}"
        return first_and_last if self.layers.step == 1 else f"{first_and_last}-{self.layers.step}"


def runs(config: DecoderConfig) -> tuple[tuple[Stack, ...], ...]:
    """The stacks that are scanned together, in the order in which they are run."""
    keys = keys_of(config)
    kinds = [(_parts(config, layer), keys[layer]) for layer in range(config.layers)]
    configs = {parts: _with_parts(config, parts) for parts, _ in kinds}
    found, first = [], 0
    for period, times in _periods(kinds):
        end = first + period * times
        starts = range(first, first + period)
        found.append(
            tuple(Stack(range(at, end, period), configs[kinds[at][0]], keys[at]) for at in starts)
        )
        first = end
    return tuple(found)


def stacks(config: DecoderConfig) -> tuple[Stack, ...]:
    """All of them, those that take turns side by side."""
    return tuple(stack for run in runs(config) for stack in run)


_PARTS = {"experts": "expert_layers", "linear": "linear_layers"}  # that only some layers may have


def _parts(config: DecoderConfig, layer: int) -> tuple[bool, ...]:
    """Which of the parts this layer has, where the model has them."""
    which = (getattr(config, layers) for layers in _PARTS.values())
    return tuple(layers is None or layers[layer] for layers in which)


def _with_parts(config: DecoderConfig, parts: tuple[bool, ...]) -> DecoderConfig:
    without = {part: None for part, has in zip(_PARTS, parts, strict=True) if not has}
    return dataclasses.replace(config, **dict.fromkeys(_PARTS.values()), **without)


def _periods(kinds: Sequence[Any]) -> list[tuple[int, int]]:
    """(period, how often it comes) of one run after the other, of the fewest layers to compile."""
    count = len(kinds)
    best = [(0, 0, 0, 0)] * (count + 1)  # layers to compile, those of the run below 0, the run
    alike = [0] * (_LONGEST_PERIOD + 1)  # by period: so many layers from here on come again
    for at in reversed(range(count)):
        choices = []
        for period in range(1, min(_LONGEST_PERIOD, count - at) + 1):
            again = at + period < count and kinds[at] == kinds[at + period]
            alike[period] = alike[period] + 1 if again else 0
            times = 1 + alike[period] // period
            if period == 1 or times > 1:
                reached = period * times
                choices.append((period + best[at + reached][0], -reached, period, times))
        best[at] = min(choices)
    found, at = [], 0
    while at < count:
        _, _, period, times = best[at]
        found.append((period, times))
        at += period * times
    return found
