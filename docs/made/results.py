"""The tables of figures, out of what the benchmarks have stored."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def table(name: str) -> str:
    """The command, the versions and the machine of a result, and its rows."""
    its = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    rows = [
        its["columns"],
        ["---"] * len(its["columns"]),
        *(map(_cell, row) for row in its["rows"]),
    ]
    shown = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"`{its['command']}`  \n{its['versions']}. Machine: {its['machine']}.\n\n{shown}"


def _cell(text: str) -> str:
    """A figure is not broken in two; three of them stand one below the other."""
    if text.count(" / ") >= 2:
        return text.replace(" / ", "<br>")
    return text.replace(" ", "\N{NO-BREAK SPACE}") if text[:1].isdigit() else text
