"""Static data of nodes as JSON: numbers, texts, None, tuples of them, and axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora._lowrank import Axes


def to_json(value: Any) -> Any:
    """What `from_json` gives back."""
    return dataclasses.asdict(value) if isinstance(value, Axes) else value


def from_json(value: Any) -> Any:
    """A static value out of JSON, which has lists for tuples."""
    if isinstance(value, Mapping):
        return Axes(**{name: tuple(dims) for name, dims in value.items()})
    return tuple(map(from_json, value)) if isinstance(value, list) else value


def static_fields(cls: type) -> list[str]:
    """The names of the fields of a node class that are no arrays, in their order."""
    return [f.name for f in dataclasses.fields(cls) if f.metadata.get("static")]


def array_fields(cls: type) -> list[str]:
    """The names of the others."""
    return [f.name for f in dataclasses.fields(cls) if not f.metadata.get("static")]
