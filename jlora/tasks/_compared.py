"""Answers before and after, side by side, for a person to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jlora import _words
from jlora.data import text_of


def compared(
    rows: Sequence[Sequence[Mapping[str, Any]]], scores: Mapping[str, Any], *, shown: int = 5
) -> str:
    """Some answers and all scores, before and after, to be read.

    Args:
        rows: the conversations that were measured, each with the wanted answer last.
        scores: by name (``before``, ``after``): ``loss``, ``exact_match`` (None where no row asks
            for an answer) and ``answers``.
        shown: how many answers.
    """
    lines = []
    asking = [at for at, row in enumerate(rows) if len(row) > 1]
    for at in asking[:shown]:
        asked, wanted = (text_of(message) for message in rows[at][-2:])
        lines += ["", f"  {asked}", f"    wanted  {wanted}"]
        lines += [
            f"    {name:<6}  {_words.one_line(its['answers'][at], 100)}"
            for name, its in scores.items()
        ]
    lines += ["", f"{len(rows)} held-out rows    loss per token    exact match"]
    for name, its in scores.items():
        match = its["exact_match"]
        shown_match = f"{'-':>13}" if match is None else f"{100 * match:11.1f} %"
        loss = f"{'-':>14}" if its["loss"] is None else f"{its['loss']:14.3f}"
        lines.append(f"  {name:<16}  {loss}  {shown_match}")
    return "\n".join(lines)
