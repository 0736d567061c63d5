"""How often each computation of a compiled program is run: what a loop runs, once for each turn."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations|"
    r"(?:true|false)_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)")

Lines = dict[str, list[str]]


def computations(text: str) -> tuple[Lines, str]:
    """(the lines of each computation by its name, the name of the first one to run)."""
    found: Lines = {}
    name = entry = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[1]
            found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            found[name].append(line)
    return found, entry


def runs(lines: Lines, entry: str) -> dict[str, int]:
    """How often each computation is run, by its name.

    Raises:
        ValueError: when a loop does not say how often it turns.
    """
    times: collections.Counter[str] = collections.Counter()
    for name, count in _runs(lines, entry, 1):
        times[name] += count
    return times


def _runs(lines: Lines, name: str, times: int) -> Iterator[tuple[str, int]]:
    yield name, times
    for line in lines[name]:
        if " async-done(" in line or " async-update(" in line:  # of what async-start called
            continue
        called = [n for c in _CALLED.findall(line) for n in re.findall(r"[\w.\-]+", c)]
        inner = [each for each in called if each in lines]
        trips = _trips(lines, line) if inner else 1
        for each in inner:
            yield from _runs(lines, each, times * trips)


def _trips(lines: Lines, line: str) -> int:
    """How often what the line calls is run: by the loop's own word, or as it counts."""
    if known := _TRIPS.search(line):
        return int(known[1])
    if (loop := _LOOP.search(line)) is None:
        return 1
    condition, body = (_operations(lines[name]) for name in loop.groups())
    try:
        left, limit = _operands(condition["ROOT"], "compare")
        counter = int(re.findall(r"index=(\d+)", condition[left][2])[0])
        places = re.findall(r"%?([\w.\-]+)", re.sub(r"/\*.*?\*/", "", body["ROOT"][1]))
        added = _operands(body[places[counter]], "add")
        [by] = [_constant(body[each]) for each in added if body[each][0] == "constant"]
        # from 0 on, as all loops of `jax.lax.scan` and of the partitioner are
        return -(-_constant(condition[limit]) // by)
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"a loop whose turns are not known: {loop[1]}, {loop[2]}") from error


def _operations(lines: list[str]) -> dict[str, tuple[str, str, str]]:
    """(operation, operands, what follows) by name; the result's also as ROOT."""
    found = {}
    for line in lines:
        if named := _NAMED.match(line):
            found[named[1]] = named.groups()[1:]
            if line.lstrip().startswith("ROOT"):
                found["ROOT"] = found[named[1]]
    return found


def _operands(its: tuple[str, str, str], operation: str) -> list[str]:
    if its[0] != operation:
        raise ValueError(f"expected {operation}, found {its[0]}")
    return re.findall(r"%?([\w.\-]+)(?:,|$)", its[1])


def _constant(its: tuple[str, str, str]) -> int:
    return int(its[1])
