"""A run as a picture: its losses, and its scores before and after."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _files


def draw(
    path: str | Path, metrics: list[dict[str, Any]], scores: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes a PNG: the loss of each step, and the exact match before and after.

    Args:
        path: the file to write.
        metrics: from `read_metrics`.
        scores: ``{"before": {"loss": ..., "exact_match": ...}, "after": {...}}``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    left.plot([row["step"] for row in metrics], [row["loss"] for row in metrics], lw=1.2)
    steps = (0, metrics[-1]["step"])
    for step, score in zip(steps, scores.values(), strict=True):
        label = "held out" if step == 0 else None
        left.plot(step, score["loss"], "o", color="tab:red", label=label)
    left.set(xlabel="step", ylabel="loss per answer token", ylim=(0, None))
    left.legend(frameon=False)
    matches = [score["exact_match"] for score in scores.values()]
    if None in matches:  # rows of plain text ask for no answer
        right.set_axis_off()
    else:
        bars = right.bar(list(scores), [100 * match for match in matches])
        right.bar_label(bars, fmt="%.0f %%")
        right.set(ylabel="exact match, %", ylim=(0, 110))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format="png")
    _files.write_together({Path(path): drawn.getvalue()})
