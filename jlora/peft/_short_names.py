"""Names in PEFT's configuration: as short as they can be without meaning another module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jlora.peft import _matching


def short(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Last components in place of names, where they mean no other."""
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    clash = {end for end in ends for other in others if f".{other}".endswith(f".{end}")}
    kept = [name for name in names if name.rpartition(".")[2] in clash]
    return [*(end for end in ends if end not in clash), *kept]


def short_ends(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """As `short`, for ``modules_to_save``, which are found at the end of any name."""
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    clash = {end for end in ends if any(other.endswith(end) for other in others)}
    kept = [name for name in names if name.rpartition(".")[2] in clash]
    return [*(end for end in ends if end not in clash), *kept]


def patterns_of(
    values: Mapping[str, Any], default: Any, first: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """The default, and a pattern for each name that has another value."""
    held = list(values.values())
    if first:
        default = values[first[0]]
    elif default not in held:
        default = max(held, key=held.count)
    patterns: dict[str, Any] = {}
    for value in dict.fromkeys(held):
        if value != default:
            names = [name for name in values if values[name] == value]
            others = [name for name in values if values[name] != value]
            patterns |= dict.fromkeys(short(names, others), value)
    if any(_matching.value_for(patterns, name, default) != v for name, v in values.items()):
        patterns = {f"^{re.escape(name)}": v for name, v in values.items() if v != default}
    return default, patterns
