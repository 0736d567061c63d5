"""A run as a picture: its losses, learning rate and pace, and its scores before and after."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jlora import _files, _requires, _together

_PALE, _INK, _HELD_OUT, _GREY = "#b9cde2", "#1f5a96", "#d1602a", "#6b6b6b"
_SCORES = 3  # at most, as panels
_SMOOTHED = 40  # points of the smoothed line: a mean over one part in so many of the steps


def draw(
    path: str | Path,
    metrics: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    evaluation: str = "eval/",
) -> None:
    """Writes a PNG with a panel for each thing that there is.

    The loss of each step, its running mean, and the loss of evaluations; the learning rate
    (``learning_rate``); the tokens in a second (``tokens`` over ``seconds``); and every other
    number of the scores, at most three, before and after.

    Args:
        path: the file to write.
        metrics: from `read_metrics`.
        scores: numbers by name, before and after: ``{"before": {"loss": 3.0, "accuracy": 0.1},
            "after": {...}}``. What is no number is left out.
        evaluation: what the names of an evaluation's numbers begin with in ``metrics``.

    Raises:
        ValueError: when there is nothing to draw, or matplotlib is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> import jlora
        >>> metrics = [{"step": step, "loss": 3 / step} for step in range(1, 20)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.trainer.draw(pathlib.Path(folder) / "training.png", metrics)
    """
    agg = _requires.requires("matplotlib.backends.backend_agg")
    figures = _requires.requires("matplotlib.figure")
    with_font = _requires.requires("matplotlib").rc_context({"font.size": 9})

    panels = _panels(metrics, _numbers_of(scores or {}), evaluation)
    if not panels:
        raise ValueError("nothing to draw: expected steps with a loss, or scores")
    with with_font:
        rows, kinds = _arranged(panels)
        figure = figures.Figure(figsize=(9, 3.4 if len(rows) == 1 else 4.8), layout="constrained")
        agg.FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        axes = figure.subplot_mosaic(rows, **kinds)
        for name, fill in panels.items():
            _quiet(axes[name], name)
            fill(axes[name])
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=150, facecolor="white", format="png")
        content = {Path(path): drawn.getvalue()}
        _together.by_first(f"writing {path}", lambda: _files.write_together(content))


def _panels(metrics: Any, scores: Any, evaluation: str) -> dict[str, Any]:
    """What fills each panel, by the panel's title; only those that have something to show."""
    panels: dict[str, Any] = {}
    measured = _measured(metrics, scores, evaluation)
    if losses := _series(metrics, lambda row: row["loss"]):
        panels["loss"] = lambda axes: _losses(axes, losses, measured)
    if rates := _series(metrics, lambda row: row["learning_rate"]):
        panels["learning rate"] = lambda axes: _line(axes, rates)
    if paces := _series(metrics, lambda row: row["tokens"] / row["seconds"]):
        panels["tokens/s"] = lambda axes: _smoothed_line(axes, paces)
    shared = [name for name in next(iter(scores.values()), {}) if name != "loss"]
    for name in [name for name in shared if all(name in its for its in scores.values())][:_SCORES]:
        bars = {when: its[name] for when, its in scores.items()}
        panels[name.replace("_", " ")] = lambda axes, bars=bars: _bars(axes, bars)
    return panels


def _arranged(panels: Mapping[str, Any]) -> tuple[list[list[str]], dict[str, Any]]:
    """The panels as a mosaic: over time on the left, the loss above; scores on the right."""
    over_time = [name for name in panels if name in ("loss", "learning rate", "tokens/s")]
    scored = [name for name in panels if name not in over_time]
    above, below = over_time[:1], over_time[1:]
    width = max(1, len(below))
    rows = [above * width, below] if below else [above]
    heights = (2, 1) if below else (1,)
    if not over_time:
        return [scored], {}
    columns = [*[3 / width] * width, *[0.9] * len(scored)]
    rows = [[*row, *scored] for row in rows]
    return rows, {"width_ratios": columns, "height_ratios": heights}


def _losses(axes: Any, losses: Sequence[tuple[int, float]], measured: Any) -> None:
    """Each step's pale, the running mean over it, and the measured ones as points."""
    _smoothed_line(axes, losses)
    if measured:
        looks = {"color": _HELD_OUT, "mec": "white", "mew": 0.8, "ms": 6}
        axes.plot(*zip(*measured, strict=True), "o", label="held out", **looks)
    if odd := [step for step, loss in losses if not math.isfinite(loss)]:
        floor = axes.get_xaxis_transform()  # steps from left to right, shares of the panel upwards
        label = f"not finite ({len(odd)})"
        axes.plot(odd, [0.03] * len(odd), "x", color="black", ms=5, transform=floor, label=label)
    finite = [loss for _, loss in losses if math.isfinite(loss)]
    if all(value >= 0 for value in finite):
        axes.set_ylim(bottom=0)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, loc="upper right")


def _smoothed_line(axes: Any, series: Sequence[tuple[int, float]]) -> None:
    """The values pale and their running mean in ink, where there are enough for both."""
    window = len(series) // _SMOOTHED
    if window < 2:
        _line(axes, series, label="training")
        return
    _line(axes, series, color=_PALE, lw=0.9)
    finite = [(step, value) for step, value in series if math.isfinite(value)]
    sums = [0.0, *itertools.accumulate(value for _, value in finite)]
    half = window // 2
    smooth = []
    for at, (step, _) in enumerate(finite):
        first, last = max(0, at - half), min(len(finite), at + half + 1)
        smooth.append((step, (sums[last] - sums[first]) / (last - first)))
    _line(axes, smooth, lw=1.6, label=f"training, mean of {2 * half + 1} steps")
    # one slow or wild step does not make the others flat
    ordered = sorted(value for _, value in finite)
    top = max(ordered[int(0.99 * (len(ordered) - 1))], max(value for _, value in smooth))
    axes.set_ylim(min(0, ordered[0]), 1.08 * top if top > 0 else None)


def _line(axes: Any, series: Sequence[tuple[int, float]], **looks: Any) -> None:
    steps, values = zip(*series, strict=True)
    marker = "o" if len(series) == 1 else None
    axes.plot(steps, values, marker=marker, **({"color": _INK, "lw": 1.4} | looks))
    axes.set_xlabel("step")
    axes.margins(x=0.02)


def _bars(axes: Any, values: Mapping[str, float]) -> None:
    """A bar for each, with its number on it; shares of one on an axis that ends there."""
    colours = [_PALE, *[_INK] * (len(values) - 1)]
    bars = axes.bar(list(values), list(values.values()), width=0.62, color=colours)
    axes.bar_label(bars, fmt="%.3g", padding=2)
    if all(0 <= value <= 1 for value in values.values()):
        axes.set(ylim=(0, 1.08), yticks=(0, 0.5, 1))
    else:
        axes.margins(y=0.12)


def _quiet(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors=_GREY, labelcolor="black", length=3)


def _series(metrics: Any, value: Any) -> list[tuple[int, float]]:
    """(step, value) of the rows that have it."""
    found = []
    for row in metrics:
        try:
            found.append((row["step"], float(value(row))))
        except (KeyError, ZeroDivisionError):
            continue
    return found


def _measured(metrics: Any, scores: Any, evaluation: str) -> list[tuple[int, float]]:
    """The loss on held-out rows: before, in evaluations on the way, and after."""
    found = dict(_series(metrics, lambda row: row[f"{evaluation}loss"]))
    losses = [its["loss"] for its in scores.values() if "loss" in its]
    ends = (0, max((row["step"] for row in metrics), default=0))
    for step, loss in zip(ends, losses, strict=False):
        found.setdefault(step, loss)
    return sorted((step, loss) for step, loss in found.items() if math.isfinite(loss))


def _numbers_of(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The scores without what is no number."""
    return {
        when: {
            name: value
            for name, value in its.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        for when, its in scores.items()
    }
