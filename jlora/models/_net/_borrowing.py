"""Whose keys and values a layer reads: its own, or those of a layer before it.

As Gemma 3n shares them (Google 2025), after Sun et al. 2024, "You Only Cache Once", arXiv
2405.05254.
"""

from __future__ import annotations

from typing import Literal

from jlora.models._net._config import DecoderConfig

Keys = Literal["own", "lent", "borrowed"]
OWN: Keys = "own"
LENT: Keys = "lent"  # its own, which later layers read too
BORROWED: Keys = "borrowed"


def lenders(config: DecoderConfig) -> dict[int, int]:
    """By layer that borrows, the last one with its own keys and values that sees as far."""
    first = config.layers - (config.borrowing or 0)
    windows = config.windows or (None,) * config.layers
    last = {windows[layer]: layer for layer in range(first)}
    return {layer: last[windows[layer]] for layer in range(first, config.layers)}


def keys_of(config: DecoderConfig) -> list[Keys]:
    """Of each layer."""
    its = lenders(config)
    lent = set(its.values())
    return [
        BORROWED if layer in its else LENT if layer in lent else OWN
        for layer in range(config.layers)
    ]
