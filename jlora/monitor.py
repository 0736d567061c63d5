"""What a person sees of a run and how they stop it: metrics, a figure, signals.

``with Metrics(path, resume_at=step) as metrics: metrics.write(step, {"loss": loss})``;
``with stop_on_signals() as stop: ... if stop.requested: ...``; ``draw(path, metrics, scores)``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jlora.data import text_of


class Metrics:
    """A JSON line for each step, on disk as soon as it is written.

    Args:
        path: the file.
        resume_at: steps already taken. Lines of later ones, which a run that broke off wrote
            after its last checkpoint, are removed; 0 starts the file afresh.
    """

    def __init__(self, path: str | Path, *, resume_at: int = 0):
        path = Path(path)
        kept = [row for row in read_metrics(path) if row["step"] <= resume_at] if resume_at else []
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends the line of the step."""
        self._file.write(_line({"step": step, **values}))
        self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut off is left out."""
    path = Path(path)
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


class Stop:
    """Whether someone asked the run to stop, and by which signal."""

    signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """True once a signal has come."""
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A `Stop` that Ctrl-C and SIGTERM set, so that the loop can save before it leaves.

    A second signal acts as it would have without.
    """
    stop = Stop()
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        restore()

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    for number in former:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


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
    figure.savefig(path, dpi=150)


def peak_memory() -> str:
    """The most memory that this process held, in words: "1.9 GiB of memory at most"."""
    try:
        import resource
    except ImportError:  # Windows
        return "memory not measured"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return f"{peak / unit:.1f} GiB of memory at most"


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


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
        lines += [f"    {name:<6}  {_short(its['answers'][at])}" for name, its in scores.items()]
    lines += ["", f"{len(rows)} held-out rows    loss per token    exact match"]
    for name, its in scores.items():
        match = its["exact_match"]
        shown_match = f"{'-':>13}" if match is None else f"{100 * match:11.1f} %"
        lines.append(f"  {name:<16}  {its['loss']:14.3f}  {shown_match}")
    return "\n".join(lines)


def _short(text: str, width: int = 100) -> str:
    """The text in one line of at most so many letters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."
