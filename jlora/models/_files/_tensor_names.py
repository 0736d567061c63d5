"""A file's names for a family's parameters, whatever wrappers it was saved in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jlora._wrapped_names import bare
from jlora.models._families import Family


def of_family(names: Iterable[str], family: Family) -> dict[str, list[str]]:
    """The names that a file has for each of the family's; what is not the family's stays as it is.

    More than one stands for a parameter that the file holds twice.
    """
    prefixes = {}
    for leaf in family.leaves.values():
        short = bare(leaf.name)
        prefixes[short.partition(".")[0]] = leaf.name.removesuffix(short)
    found: dict[str, list[str]] = {}
    for name in names:
        short = _renamed(bare(name), family.older_names)
        prefix = prefixes.get(short.partition(".")[0])
        found.setdefault(name if prefix is None else prefix + short, []).append(name)
    return found


def _renamed(name: str, ends: Mapping[str, str]) -> str:
    """The name as it is written today."""
    for end, now in ends.items():
        if name.endswith(end):
            return name.removesuffix(end) + now
    return name
