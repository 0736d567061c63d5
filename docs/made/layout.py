"""The table of what is cut along which axis of a mesh, out of the rules."""

from __future__ import annotations

from jlora.models._families._layout_rules import RULES
from jlora.models._mesh import FSDP, MODEL


def table() -> str:
    """A row for each rule, and one for what none of them names."""
    rows = [(rule.weights, *(_along(axis, rule.dims) for axis in (FSDP, MODEL))) for rule in RULES]
    rows.append(("norms, biases", "whole", "whole"))
    head = f"| Weight | Along `{FSDP}` | Along `{MODEL}` |\n|---|---|---|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _along(axis: str, dims: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    """The dimensions that are cut along the axis."""
    return ", ".join(name for name, axes in dims if axis in axes) or "whole"
