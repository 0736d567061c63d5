"""The figure: measured points on the theory's line, for each thing that grows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.growth._step import Cost, Point

MEASURED, THEORY = "tab:blue", "0.35"


def draw(
    path: Path,
    base: Point,
    grids: Mapping[str, Sequence[Point]],
    measured: Mapping[Point, Cost],
    theory: Mapping[Point, Cost],
    notes: Mapping[str, str],
) -> None:
    """Writes the PNG: a row for seconds and one for MB, a column for each grid."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(grids), sharex="col", sharey="row")
    fitted = "the point that gives the rate"
    units = {"rank": "rank", "layers": "layers", "length": "length, tokens"}
    fields = {"seconds": ("seconds a step", 1.0), "memory": ("memory of a step, MB", 1e6)}
    for row, (field, (label, unit)) in zip(panels, fields.items(), strict=True):
        found = "measured" if field == "seconds" else "as compiled"
        for panel, (name, points) in zip(row, grids.items(), strict=True):
            x = [getattr(point, name) for point in points]
            lines = [
                [getattr(costs[p], field) / unit for p in points] for costs in (theory, measured)
            ]
            panel.plot(x, lines[0], "-", color=THEORY, label=f"theory: {notes[field]}")
            panel.plot(x, lines[1], "o", color=MEASURED, label=found)
            if field == "seconds":
                at = points.index(base)
                panel.plot(x[at], lines[1][at], "o", ms=11, mfc="none", mec=THEORY, label=fitted)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.xaxis.set_major_locator(FixedLocator(x))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.xaxis.set_minor_locator(FixedLocator([]))
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(label)
        row[0].legend(loc="upper left", frameon=False, fontsize=9)
    for panel, name in zip(panels[-1], grids, strict=True):
        panel.set_xlabel(units[name])
    figure.suptitle(notes["title"], fontsize=11)
    figure.supxlabel(notes["footer"], fontsize=8, color="0.35")
    figure.savefig(path, dpi=150)
