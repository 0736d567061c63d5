"""A run of train.py: how far it came, what it reached, and the adapter that it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import trainer
from jlora._info import _adapter, _text

KIND = "run"


def facts(directory: Path) -> dict[str, Any]:
    """What is recorded of the run; its checkpoints are not opened, so it may be under way.

    Raises:
        ValueError: when a record is damaged.
    """
    run = trainer.Run(directory)
    rows = trainer.read_metrics(directory / "metrics.jsonl")
    metrics = [row for row in rows if "loss" in row]  # others are of an evaluation alone
    adapter = directory / "adapter"
    return {
        "kind": KIND,
        "path": str(directory),
        "settings": run.settings["settings"],
        "checkpoint": run.latest_step,
        "last": metrics[-1] if metrics else None,
        "scores": {
            name: {k: v for k, v in score.items() if isinstance(v, (int, float))}
            for name, score in (run.recorded("results") or {}).items()
        },
        "adapter": _adapter.facts(adapter) if (adapter / "adapter.json").exists() else None,
    }


def lines(known: Mapping[str, Any]) -> list[str]:
    """The facts to be read."""
    settings, last, adapter = known["settings"], known["last"], known["adapter"]
    took = f"step {last['step']}{_of(settings)}, loss {last['loss']:.3f}" if last else None
    about = _text.pairs(
        {
            "run": known["path"],
            "model": settings["model"],
            "data": " ".join([data] if isinstance(data := settings["data"], str) else data),
            "came to": took or "no step yet",
            "saved": f"step {known['checkpoint']}" if known["checkpoint"] else None,
        }
    )
    scores = known["scores"]
    columns = list(dict.fromkeys(name for score in scores.values() for name in score))
    rows = [(n, *(f"{s.get(c, float('nan')):.3f}" for c in columns)) for n, s in scores.items()]
    if rows:
        about += ["", *_text.table(("held out", *columns), rows)]
    return [*about, "", *(_adapter.lines(adapter) if adapter else ["adapter  not written yet"])]


def _of(settings: Mapping[str, Any]) -> str:
    """How many steps were asked for, where a number was."""
    return f" of {settings['steps']}" if settings.get("steps") else ""
