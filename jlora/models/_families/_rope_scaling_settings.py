"""The kinds of RoPE scaling that a config.json may name: each record in both directions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jlora.models._families._settings import Settings
from jlora.models._net._rope_scalings import (
    DynamicRopeScaling,
    LinearRopeScaling,
    LongRopeScaling,
    RopeScaling,
    Scaling,
    YarnRopeScaling,
)

_ORIGINAL = "original_max_position_embeddings"


class Record:
    """One record of a config.json, and what is wrong with it."""

    def __init__(self, kind: str, values: Mapping[str, Any], max_position: Any):
        self.kind, self.values, self.max_position = kind, values, max_position
        self.problems: list[str] = []

    def number(self, name: str, default: float | None = None) -> float:
        """The number above 0 of this name; without a default it is needed."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return value
        self.problems.append(
            f"lacks {name}" if value is None else f"has {name} {value!r}: expected a number above 0"
        )
        return 1.0

    def numbers(self, name: str) -> tuple[float, ...]:
        """The list of numbers above 0 of this name."""
        value = self.values.get(name)
        if isinstance(value, list | tuple) and all(
            isinstance(each, int | float) and each > 0 for each in value
        ):
            return tuple(map(float, value))
        self.problems.append(
            f"lacks {name}" if value is None else f"has {name}: expected a list of numbers above 0"
        )
        return ()

    def stretched(self) -> float:
        """The factor, or how much longer texts may be now, which is the same."""
        if self.values.get("factor") is not None:
            return self.number("factor")
        return (self.max_position or 1) / self.number(_ORIGINAL)


def _yarn(record: Record) -> Scaling:
    factor, by_width = record.stretched(), ("mscale", "mscale_all_dim")

    def sharper(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    sharpness = sharper(1.0)
    if all(record.values.get(name) for name in by_width):
        over, under = (sharper(record.number(name)) for name in by_width)
        sharpness = over / under
    return YarnRopeScaling(
        factor=factor,
        original_max_position=int(record.number(_ORIGINAL)),
        attention_factor=record.number("attention_factor", sharpness),
        beta_fast=record.number("beta_fast", 32.0),
        beta_slow=record.number("beta_slow", 1.0),
        truncate=bool(record.values.get("truncate", True)),
    )


def _longrope(record: Record) -> Scaling:
    original, factor = int(record.number(_ORIGINAL)), record.stretched()
    longer = factor > 1 and original > 1
    sharpness = math.sqrt(1 + math.log(factor) / math.log(original)) if longer else 1.0
    return LongRopeScaling(
        short=record.numbers("short_factor"),
        long=record.numbers("long_factor"),
        original_max_position=original,
        attention_factor=record.number("attention_factor", sharpness),
    )


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of scaling: its class, how a record of it is read, what its fields are called."""

    scaling: type
    read: Callable[[Record], Scaling]
    names: Mapping[str, str]  # field -> name in the record


_STRETCH = {"factor": "factor", "original_max_position": _ORIGINAL}
_LLAMA3 = {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"}
_SHARP = {"attention_factor": "attention_factor"}
KINDS: dict[str, Kind] = {
    "linear": Kind(
        LinearRopeScaling,
        lambda record: LinearRopeScaling(record.number("factor")),
        {"factor": "factor"},
    ),
    "llama3": Kind(
        RopeScaling,
        lambda record: RopeScaling(
            record.number("factor"),
            *(record.number(name) for name in _LLAMA3),
            original_max_position=int(record.number(_ORIGINAL)),
        ),
        {**_STRETCH, **_LLAMA3},
    ),
    "yarn": Kind(
        YarnRopeScaling,
        _yarn,
        {
            **_STRETCH,
            **_SHARP,
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "truncate": "truncate",
        },
    ),
    "longrope": Kind(
        LongRopeScaling,
        _longrope,
        {
            **_SHARP,
            "original_max_position": _ORIGINAL,
            "short": "short_factor",
            "long": "long_factor",
        },
    ),
    "dynamic": Kind(
        DynamicRopeScaling,
        lambda record: DynamicRopeScaling(record.number("factor"), int(record.max_position or 1)),
        {"factor": "factor"},
    ),
}


def scaling_in(
    settings: Settings, rope: Mapping[str, Any], kinds: tuple[str, ...]
) -> Scaling | None:
    """The scaling in a record; what is wrong with it is a problem.

    The length of the original training is the record's own, or that of all positions.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in kinds:
        expected = ", ".join(("none", *map(repr, kinds)))
        settings.problems.append(f"RoPE scaling of type {kind!r}: expected {expected}")
        return None
    longest = settings.get("max_position_embeddings")
    original = rope.get(_ORIGINAL)
    values = {**rope, _ORIGINAL: longest if original is None else original}
    record = Record(kind, values, longest)
    scaling = KINDS[kind].read(record)
    if record.problems:
        problems = ", ".join(dict.fromkeys(record.problems))
        settings.problems.append(f"RoPE scaling of type {kind!r} {problems}")
        return None
    return scaling


def record_of(theta: float, scaling: Scaling | None) -> dict[str, Any]:
    """The record that says this."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    for name, kind in KINDS.items():
        if isinstance(scaling, kind.scaling):
            rope["rope_type"] = name
            for field, written in kind.names.items():
                value = getattr(scaling, field)
                rope[written] = list(value) if isinstance(value, tuple) else value
    return rope
