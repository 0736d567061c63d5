"""What can be wrong with a config.json beyond one setting: two that disagree, values of no kind."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from jlora._words import one_line
from jlora.models._families._settings import FIELDS

_FULL, _LOCAL = "full_attention", "sliding_attention"


def two_ropes(settings: Mapping[str, Any]) -> list[str]:
    """Where ``rope_parameters`` says other than ``rope_scaling`` and the settings beside it do."""
    new = settings.get("rope_parameters")
    if not isinstance(new, Mapping):
        return []
    whole = new.get(_FULL, new)
    local = new.get(_LOCAL)
    old = settings.get("rope_scaling")
    former = [("rope_scaling", "rope_type", whole, _kind(old))]
    if isinstance(old, Mapping):
        former += [
            ("rope_scaling", name, whole, value)
            for name, value in old.items()
            if name not in ("type", "rope_type")
        ]
    former += [
        ("rope_theta", "rope_theta", whole, settings.get("rope_theta")),
        ("rope_local_base_freq", "rope_theta", local, settings.get("rope_local_base_freq")),
    ]
    return [
        f"{source} and rope_parameters differ in {name}: {_short(value)} and {_short(now)}. "
        "Remove the one that is wrong"
        for source, name, record, value in former
        if isinstance(record, Mapping) and value is not None
        for now in [_kind(record) if name == "rope_type" else record.get(name)]
        if now is not None and now != value
    ]


# What the records of all kinds of RoPE hold; a kind's own part says which of them it reads.
_IN_A_ROPE = frozenset(
    {
        *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "finetuned"),
        *("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
        *("short_factor", "long_factor", "short_mscale", "long_mscale"),
        *(
            "alpha",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
        *(_FULL, _LOCAL),
    }
)


def unknown_in_ropes(settings: Mapping[str, Any]) -> list[str]:
    """Keys in the records of RoPE that no kind of it has."""
    named = {name: settings.get(name) for name in ("rope_scaling", "rope_parameters")}
    records = [
        (name, each)
        for name, record in named.items()
        if isinstance(record, Mapping)
        for each in (record, record.get(_FULL), record.get(_LOCAL))
        if isinstance(each, Mapping)
    ]
    return [
        f"{name} has {key} {_short(value)}: jlora.models does not know it"
        for name, record in records
        for key, value in record.items()
        if key not in _IN_A_ROPE and value is not None
    ]


def _kind(record: Any) -> Any:
    return record.get("rope_type", record.get("type")) if isinstance(record, Mapping) else None


def mistyped(fields: Mapping[str, Any]) -> list[str]:
    """The fields of a model that are of another type than it has."""
    return [
        f"{name} is {_short(value)}: expected {expected}"
        for field, value in fields.items()
        for name, value, expected in _wrong(field, value, FIELDS.get(field, ""))
    ]


def _wrong(name: str, value: Any, kind: str) -> Iterator[tuple[str, Any, str]]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            own = getattr(value, field.name)
            yield from _wrong(f"{name}.{field.name}", own, str(field.type))
    elif kind == "tuple[int | None, ...] | None" and value is not None:
        if not all(one is None or type(one) is int for one in value):
            yield name, value, "whole numbers"
    elif kind == "int" and type(value) is not int:
        yield name, value, "a whole number"
    elif kind == "int | None" and value is not None:
        least = _LEAST.get(name, 1)
        if type(value) is not int or value < least:
            yield name, value, f"a whole number of at least {least:g}"
    elif kind == "bool" and type(value) is not bool:
        yield name, value, "true or false"
    elif value is None and kind == "float | None":
        return
    elif kind.startswith("float"):
        least = _LEAST.get(name, 0.0)
        if not _is_number(value) or value < least:
            yield name, value, f"a number from {least:g} on"


_LEAST = {"rope_theta": 1.0, "local_rope_theta": 1.0, "padding": 0}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _short(value: Any) -> str:
    return one_line(repr(value), 60)
