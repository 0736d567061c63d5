"""What a compiled program moves between chips: each collective, how often, and how many bytes."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

# Bytes that a chip sends for each byte of the result, in a ring of n (all of them but its own part,
# for a sum twice).
RING = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,  # its result is one part
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_COLLECTIVE = re.compile(
    rf"= (?P<result>\(.*?\)|\S+) (?P<name>{'|'.join(RING)})(?P<start>-start)?\("
)
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations|"
    r"(?:true|false)_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]<=)")
_ORIGIN = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Moved:
    """One collective of a program."""

    name: str
    shapes: tuple[tuple[int, ...], ...]  # of its result
    result: int  # bytes of that, on a chip
    chips: int  # that take part in each group
    times: int  # that it runs
    origin: str  # the operation that it was made of

    @property
    def sent(self) -> float:
        """Bytes that a chip sends, all times together."""
        return RING[self.name](self.chips) * self.result * self.times


def moved(text: str, chips: int) -> list[Moved]:
    """All collectives of a compiled program.

    Args:
        text: from ``compiled.as_text()``.
        chips: of the program, for collectives that name no groups.
    """
    lines, entry = _computations(text)
    times: collections.Counter[str] = collections.Counter()
    for name, count in _runs(lines, entry, 1):
        times[name] += count
    return [
        _of_line(found, line, chips, count)
        for name, count in times.items()
        for line in lines[name]
        if (found := _COLLECTIVE.search(line))
    ]


def sent(collectives: list[Moved]) -> dict[str, float]:
    """Bytes that a chip sends, by the collective's name."""
    total: collections.Counter[str] = collections.Counter()
    for each in collectives:
        total[each.name] += each.sent
    return dict(total)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(the lines of each computation by its name, the name of the first one to run)."""
    found: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[1]
            found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            found[name].append(line)
    return found, entry


def _runs(lines: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[str, int]]:
    """Each computation that is run, and how often: what a loop runs as often as it turns."""
    yield name, times
    for line in lines[name]:
        trips = int(found[1]) if (found := _TRIPS.search(line)) else 1
        for called in _CALLED.findall(line):
            for inner in re.findall(r"[\w.\-]+", called):
                if inner in lines:
                    yield from _runs(lines, inner, times * trips)


def _of_line(found: re.Match[str], line: str, chips: int, times: int) -> Moved:
    arrays = [
        (tuple(map(int, filter(None, shape.split(",")))), _bytes(kind))
        for kind, shape in _ARRAY.findall(found["result"])
    ]
    if found["start"] and found["name"] == "all-gather":  # (what goes in, what comes out)
        arrays = arrays[len(arrays) // 2 :]
    groups = _GROUPS.search(line)
    size = chips
    if groups:
        size = len(groups[1].split(",")) if groups[1] else int(groups[2] or chips)
    origin = _ORIGIN.search(line)
    return Moved(
        found["name"],
        tuple(shape for shape, _ in arrays),
        sum(math.prod(shape) * width for shape, width in arrays),
        size,
        times,
        origin[1] if origin else "",
    )


def _bytes(kind: str) -> int:
    """Of one number."""
    bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or ["8"])[0])
    return max(1, bits // 8)
