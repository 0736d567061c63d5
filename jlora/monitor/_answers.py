"""Answers before and after, side by side, for a person to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jlora import _words


def compared(
    rows: Sequence[Sequence[Mapping[str, str]]], scores: Mapping[str, Any], *, shown: int = 5
) -> str:
    """Some answers and all scores, before and after, to be read.

    Args:
        rows: the conversations that were measured, each with the wanted answer last.
        scores: by name (``before``, ``after``): ``loss``, ``exact_match`` and ``answers``.
        shown: how many answers.
    """
    lines = []
    for at, row in enumerate(rows[:shown]):
        lines += ["", f"  {row[-2]['content']}", f"    wanted  {row[-1]['content']}"]
        lines += [
            f"    {name:<6}  {_words.one_line(its['answers'][at], 100)}"
            for name, its in scores.items()
        ]
    lines += ["", f"{len(rows)} held-out rows    loss per token    exact match"]
    for name, its in scores.items():
        lines.append(f"  {name:<16}  {its['loss']:14.3f}  {100 * its['exact_match']:11.1f} %")
    return "\n".join(lines)
