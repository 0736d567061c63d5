"""What a compiled program moves between chips: each collective, how often, and how many bytes."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Hashable

from benchmarks.ahead._loops import computations, runs

# Bytes that a chip sends for each byte of the result, in a ring of n (all of them but its own part,
# for a sum twice).
RING: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,  # its result is one part
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
_WITH_OPERANDS = ("all-gather", "collective-permute", "reduce-scatter")  # begun, but not done
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_COLLECTIVE = re.compile(
    rf"= (?P<result>\(.*?\)|\S+) (?P<name>{'|'.join(RING)})(?P<start>-start)?\("
)
_ARRAY = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_ON_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
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

    A TPU's program writes one that goes on beside products again in each of them: it is known by
    its channel, and counts once.

    Args:
        text: from ``compiled.as_text()``.
        chips: of the program, for collectives that name no groups.

    Raises:
        ValueError: when a loop does not say how often it turns.
    """
    lines, entry = computations(text)
    found: dict[Hashable, Moved] = {}
    for name, count in runs(lines, entry).items():
        for at, line in enumerate(lines[name]):
            if (match := _COLLECTIVE.search(line)) is None:
                continue
            channel = _CHANNEL.search(line)
            key = channel[1] if channel else (name, at)
            # the fewest: of those beside products in a loop of their own, not where it begins
            if key not in found or found[key].times > count:
                found[key] = _of_line(match, line, chips, count)
    return list(found.values())


def sent(collectives: list[Moved]) -> dict[str, float]:
    """Bytes that a chip sends, by the collective's name."""
    total: collections.Counter[str] = collections.Counter()
    for each in collectives:
        total[each.name] += each.sent
    return dict(total)


def _of_line(found: re.Match[str], line: str, chips: int, times: int) -> Moved:
    arrays = [
        (tuple(map(int, filter(None, shape.split(",")))), _bytes(kind), kind)
        for kind, shape in _ARRAY.findall(found["result"])
    ]
    if found["start"] and found["name"] in _WITH_OPERANDS:
        # (what goes in, what comes out, words of its own)
        arrays = [each for each in arrays if each[0] or each[2] not in ("u32", "s32")]
        arrays = arrays[len(arrays) // 2 :]
    origin = _ORIGIN.search(line)
    return Moved(
        found["name"],
        tuple(shape for shape, _, _ in arrays),
        sum(math.prod(shape) * width for shape, width, _ in arrays),
        _group(line) or chips,
        times,
        origin[1] if origin else "",
    )


def _group(line: str) -> int | None:
    """The chips in each group, where the collective names groups, in any of three ways."""
    if listed := _LISTED.search(line):
        return len(listed[1].split(","))
    if counted := _COUNTED.search(line):
        return int(counted[1])
    if on_mesh := _ON_MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", on_mesh[1]))
        named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", on_mesh[2])  # an axis, or a part of one
        return math.prod(int(part or sizes[axis]) for axis, part in named)
    return None


def _bytes(kind: str) -> int:
    """Of one number."""
    bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or ["8"])[0])
    return max(1, bits // 8)
