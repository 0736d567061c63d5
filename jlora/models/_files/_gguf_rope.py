"""How a GGUF file says that rotary frequencies are stretched: in its header, or by a tensor.

``rope_freqs.weight`` holds what each frequency is divided by. Files of Llama 3.1 and later have it
in place of the numbers that it was computed from, which are found again here where there are any,
so that the configuration can be written as a config.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from jlora.models._net._rope_scalings import LinearRopeScaling, RopeFactors, RopeScaling

TENSOR = "rope_freqs.weight"
_LOW, _HIGH = 1.0, 4.0  # of every Llama since 3.1


def of_header(kind: str, factor: Any) -> LinearRopeScaling | None:
    """What ``rope.scaling.type`` and its factor say.

    Raises:
        ValueError: for a kind that jlora does not know.
    """
    if kind == "none":
        return None
    if kind == "linear" and isinstance(factor, int | float) and factor > 0:
        return LinearRopeScaling(float(factor))
    raise ValueError(f"RoPE scaling of type {kind!r} with factor {factor!r}: expected none, linear")


def of_divisors(divisors: np.ndarray, theta: float) -> Any:
    """What the tensor says as a decoder's ``rope_scaling``, as Llama 3's scaling where it is one.

    Args:
        divisors: (pairs,) of each frequency, the fastest first.
        theta: RoPE's base.

    Raises:
        ValueError: when they divide nothing.
    """
    divisors = np.asarray(divisors, np.float64)
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise ValueError(f"{TENSOR} holds {divisors.min()}: expected numbers above 0")
    if (divisors == divisors[0]).all():
        return None if divisors[0] == 1 else LinearRopeScaling(float(divisors[0]))
    frequencies = theta ** -(np.arange(len(divisors)) / len(divisors))
    for scaling in _candidates(divisors, frequencies):
        if np.allclose(_kept(frequencies, scaling), 1 / divisors, rtol=1e-5, atol=0):
            return scaling
    return RopeFactors(tuple(divisors.tolist()))


def _candidates(divisors: np.ndarray, frequencies: np.ndarray) -> Iterator[RopeScaling]:
    """Scalings of Llama 3's kind that these divisors may have been computed from.

    Between two bounds the share that is kept is a line over the frequencies, which its
    coefficients belong to: two points of it give them back.
    """
    factor = float(divisors.max())
    if factor <= 1:
        return
    kept = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    ramp = (kept > 1e-4) & (kept < 1 - 1e-4)
    for share, frequency in zip(kept[ramp], frequencies[ramp], strict=True):
        turns = share * (_HIGH - _LOW) + _LOW
        yield _scaling(factor, _HIGH, turns * 2 * math.pi / frequency)
    if ramp.sum() >= 2:
        slope, start = np.polyfit(frequencies[ramp], kept[ramp], 1)
        if start < 0 < slope:
            high = _LOW - _LOW / start
            yield _scaling(factor, round(high, 3), slope * 2 * math.pi * (high - _LOW))
    yield _scaling(factor, _HIGH, 8192)
    if not ramp.any() and (kept >= 1 - 1e-4).any():  # any bound between the fast and the slow
        slowest = frequencies[kept >= 1 - 1e-4].min()
        yield _scaling(factor, _HIGH, math.ceil(_HIGH * 2 * math.pi / slowest))


def _scaling(factor: float, high: float, positions: float) -> RopeScaling:
    whole = round(factor) if abs(factor - round(factor)) < 1e-5 else factor
    return RopeScaling(float(whole), _LOW, float(high), max(1, round(positions)))


def _kept(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """What Llama 3's scaling multiplies each frequency by."""
    turns = scaling.original_max_position * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return kept + (1 - kept) / scaling.factor
