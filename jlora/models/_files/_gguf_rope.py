"""How a GGUF file says how positions are rotated: in its header, and by tensors of divisors.

``rope_freqs.weight`` holds what each frequency is divided by. Files of Llama 3.1 and later have it
in place of the numbers that it was computed from, which are found again here where there are any,
so that the configuration can be written as a config.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jlora.models._families._family import Family
from jlora.models._families._rope_settings import (
    SHARPNESS,
    LocalAndGlobalRope,
    Rope,
    SharperRope,
)
from jlora.models._net._config import DecoderConfig
from jlora.models._net._rope_scalings import (
    LinearRopeScaling,
    LongRopeScaling,
    RopeFactors,
    RopeScaling,
)

TENSOR = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
ORIGINAL = "rope.scaling.original_context_length"
_ORIGINAL = "original_max_position_embeddings"
_SHARPNESS = "rope.scaling.yarn_log_multiplier"  # a tenth of it
_THETA = 10000.0  # where the header has no base
_LOW, _HIGH = 1.0, 4.0  # of every Llama since 3.1


def read(
    header: Any, family: Family, given: dict[str, Any], tensors: Mapping[str, Any]
) -> list[str]:
    """Adds the settings of the rotation to those of the header; what is wrong with it.

    Args:
        header: of which the entries are asked for.
        family: one that rotates; of others nothing is read.
        given: settings that the header gave.
        tensors: those of the file.
    """
    part = next((p for p in family.parts if isinstance(p, Rope | LocalAndGlobalRope)), None)
    if part is None:
        return []
    if given.get("rope_theta") is None:
        given["rope_theta"] = _THETA
    problems = _one_base(header, given)
    head_dim = given.get("head_dim")
    rotated = header.get("rope.dimension_count", head_dim)
    if isinstance(part, Rope) and part.partial and isinstance(head_dim, int) and head_dim:
        given["partial_rotary_factor"] = _share(rotated, head_dim)
    elif rotated != head_dim:
        problems.append(f"rope.dimension_count is {rotated!r}, but only {head_dim!r} is supported")
    kind = header.get("rope.scaling.type", "none")
    if LONG in tensors and SHORT in tensors and kind in ("none", "longrope"):
        given["rope_scaling"] = _longrope(header, tensors)
    elif kind == "none":
        given["rope_scaling"] = {"rope_type": "default"}
        header.get("rope.scaling.factor")
    elif kind not in ("linear", "yarn"):
        problems.append(
            f"RoPE scaling of type {kind!r}: expected none, linear, yarn, or longrope with "
            f"{LONG} and {SHORT}"
        )
    elif header.get("rope.scaling.factor") is None:
        problems.append(f"RoPE scaling of type {kind!r} has no rope.scaling.factor")
    else:
        given["rope_scaling"] = _stretched(header, kind, part)
    if TENSOR in tensors and given.get("rope_scaling") != {"rope_type": "default"}:
        problems.append(f"{TENSOR} stands beside rope.scaling.type {kind!r}: expected one of them")
    return problems


def _one_base(header: Any, given: dict[str, Any]) -> list[str]:
    """What is wrong with a second base, where the family has one."""
    theta = given["rope_theta"]
    if "rope_local_base_freq" in given:
        return []
    local = header.get("rope.freq_base_swa", theta)
    return (
        []
        if local == theta
        else [f"rope.freq_base_swa is {local!r}, but only {theta!r} is supported"]
    )


def _share(rotated: Any, head_dim: int) -> float:
    share = rotated / head_dim
    return share if int(head_dim * share) == rotated else math.nextafter(share, 1.0)


def _longrope(header: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "long_factor": _numbers(tensors[LONG]),
        "short_factor": _numbers(tensors[SHORT]),
        "attention_factor": header.get("rope.scaling.attn_factor"),
        _ORIGINAL: header.get(ORIGINAL),
    }


def _stretched(header: Any, kind: str, part: Rope | LocalAndGlobalRope) -> dict[str, Any]:
    record = {"rope_type": kind, "factor": header.get("rope.scaling.factor")}
    if kind == "linear":
        return record
    names = {
        ORIGINAL: _ORIGINAL,
        "rope.scaling.yarn_attn_factor": "attention_factor",
        "rope.scaling.yarn_beta_fast": "beta_fast",
        "rope.scaling.yarn_beta_slow": "beta_slow",
    }
    # no entry says whether the bounds are rounded: llama.cpp always does, some models do not
    own = part.missing if isinstance(part, Rope) else {}
    truncate = {"truncate": own["truncate"]} if "truncate" in own else {}
    record |= {name: header.get(entry) for entry, name in names.items()}
    if isinstance(part, SharperRope) and (tenth := header.get(_SHARPNESS)) is not None:
        # the rotation's own factor is the quotient of two, which are the same number here
        record |= dict.fromkeys((SHARPNESS, "mscale"), round(10 * tenth, 7))
    return {**record, **truncate}


def _numbers(tensor: Any) -> list[float]:
    return [float(str(each)) for each in np.asarray(tensor.data, np.float32).reshape(-1)]


def of_tensor(tensor: Any, config: DecoderConfig) -> Any:
    """The scaling that the tensor of divisors says.

    Raises:
        ValueError: when there is not one for each pair that is rotated, or they divide nothing.
    """
    divisors = np.asarray(tensor.data).reshape(-1)
    pairs = int(config.head_dim * config.rotary_share) // 2
    if len(divisors) != pairs or divisors.dtype != np.float32:
        raise ValueError(
            f"{TENSOR} is {divisors.dtype}[{len(divisors)}]: expected float32[{pairs}]"
        )
    return of_divisors(divisors, config.rope_theta)


def honoured(config: DecoderConfig) -> tuple[str, ...]:
    """The tensors that the configuration has honoured, where they are there."""
    long = isinstance(config.rope_scaling, LongRopeScaling)
    return (LONG, SHORT) if long else (TENSOR,) if not config.learned_positions else ()


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
