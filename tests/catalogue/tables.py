"""What a run over the catalogue found, as tables."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from check import Checked, LeftOut
from merged_for_a_reason import MAY_DIFFER, REASONS

import jlora


def primitives(found: Sequence[Checked]) -> str:
    """A row for each primitive that met a weight: how often, factored or merged, and why."""
    by_name: dict[str, list[jlora.Use]] = collections.defaultdict(list)
    for use in (use for each in found for use in each.uses):
        by_name[use.operation].append(use)
    rows = []
    for name, uses in sorted(by_name.items()):
        merged = [use for use in uses if not use.factored]
        why = _commonest(use.why for use in merged or uses)
        rows.append((name, len(uses), len(uses) - len(merged), len(merged), why))
    return _table(("primitive", "uses", "factored", "merged", "why (commonest reason)"), rows)


def linear_but_merged(found: Sequence[Checked]) -> str:
    """A row for each reason for which a program that is linear in a weight got it merged."""
    by_reason: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for each, use in _linear_but_merged(found):
        by_reason[use.operation, use.why].append(each.harness)
    rows = [
        (name, len(names), why, REASONS.get((name, why), "NO REASON GIVEN"), names[0][:60])
        for (name, why), names in sorted(by_reason.items())
    ]
    return _table(("primitive", "uses", "jlora says", "why that is allowed", "such as"), rows)


def without_reason(found: Sequence[Checked]) -> list[str]:
    """A line for each use that is linear in its weight and got it merged for no known reason."""
    return _by_operand(
        (each, f"{each.linear}, but merged for `{use.operation}`: {use.why}")
        for each, use in _linear_but_merged(found)
        if (use.operation, use.why) not in REASONS
    )


def reasons_left_over(found: Sequence[Checked]) -> list[str]:
    """The reasons that no use needs: of the whole catalogue, they can go."""
    needed = {(use.operation, use.why) for _, use in _linear_but_merged(found)}
    return [f"{name}: {why}" for name, why in sorted(REASONS.keys() - needed)]


def failures(found: Sequence[Checked]) -> list[str]:
    """A line for each operand for which the lifted program is not the merged one."""
    return _by_operand(
        (each, problem)
        for each in found
        if not each.harness.startswith(tuple(MAY_DIFFER))
        for problem in each.failures
    )


def totals(harnesses: int, found: Sequence[Checked], left_out: Sequence[LeftOut]) -> str:
    """How many were checked, by what could be compared, and how many were not, by why."""
    operands = {(each.harness, each.operand) for each in found}
    whys = collections.Counter(each.why for each in left_out)
    lines = [
        f"{harnesses} harnesses; {len(found)} checks of {len(operands)} operands, "
        f"{sum(bool(each.failures) for each in found)} failed",
        *_counted("compared: ", collections.Counter(each.compared for each in found)),
        *_counted("linear: ", collections.Counter(each.linear or "no" for each in found)),
        *_counted("left out: ", whys),
    ]
    return "\n".join(lines)


def _by_operand(problems: Iterable[tuple[Checked, str]]) -> list[str]:
    """For each operand the readings that have a problem, and the first of them."""
    of: dict[tuple[str, int], list[tuple[Checked, str]]] = collections.defaultdict(list)
    for each, problem in problems:
        of[each.harness, each.operand].append((each, problem))
    return [
        f"{harness}, operand {operand}, {len({each.reading for each, _ in pairs})} readings, "
        f"such as {pairs[0][0].reading}: {pairs[0][1]}"
        for (harness, operand), pairs in of.items()
    ]


def _linear_but_merged(found: Sequence[Checked]) -> Iterable[tuple[Checked, jlora.Use]]:
    linear = (each for each in found if each.linear)
    return ((each, use) for each in linear for use in each.uses if not use.factored)


def _commonest(words: Iterable[str]) -> str:
    return collections.Counter(words).most_common(1)[0][0]


def _counted(title: str, counts: collections.Counter[str]) -> list[str]:
    return [f"{count:6} {title}{what}" for what, count in counts.most_common()]


def _table(header: tuple[str, ...], rows: list[tuple]) -> str:
    cells = [header, *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
