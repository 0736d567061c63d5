"""What a run that goes on finds in its folder."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jlora import _together, checkpoint, trainer
from jlora.finetune import _kept_start
from jlora.finetune._results import LEFT_BEHIND
from jlora.finetune._settings import Settings
from jlora.finetune._settle import keep_settings

_ROWS = "rows"  # the folder of a run's rows and tokens, as the first one calls it


def begin(run: trainer.Run, settings: Settings, identity: Mapping[str, Any], rows: str) -> None:
    """Begins the run afresh; the adapters and rows of another run in the folder are deleted.

    Args:
        run: its folder.
        settings: of the run.
        identity: as for `resume`.
        rows: from `rows_folder`.

    Raises:
        ValueError: when the folder can't be made.
    """
    start = trainer.by_first("a folder for the start", lambda: _free_name(run, _kept_start.NAME))
    starts = set()
    if run.begun:
        former = {*LEFT_BEHIND, _rows_of(run), *_numbered(run, _ROWS)} - {rows}
        _remove(run, former)
        starts = {_kept_start.NAME, *_numbered(run, _kept_start.NAME)} - {start}
    run.begin({"settings": settings.flat(), "rows": rows, _kept_start.NAME: start, **identity})
    _remove(run, starts)  # the run that was replaced could not go on without its own


def rows_folder(run: trainer.Run, *, resume: bool) -> str:
    """The name of the folder for rows and tokens: another than that of a run to be replaced.

    So the former run is whole until this one begins.
    """
    of_run = lambda: _rows_of(run) if resume else _free_name(run, _ROWS)  # noqa: E731
    name = trainer.by_first("a folder for rows", of_run)
    return _own(run.directory / name) if _together.index() else name


def _own(rows: Path) -> str:
    """Another process's own folder, as the run's is now; it goes with the process."""
    own = tempfile.mkdtemp(prefix="jlora-rows-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    if rows.is_dir():
        shutil.copytree(rows, own, dirs_exist_ok=True)
    return own


def _free_name(run: trainer.Run, plain: str) -> str:
    """The name of a folder that is not there yet: this one, or this one with a number."""
    names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (run.directory / name).exists())


def _numbered(run: trainer.Run, plain: str) -> set[str]:
    """The folders of such a name with a number, those of starts in vain too."""
    return {path.name for path in run.directory.glob(f"{plain}-[0-9]*")}


def _remove(run: trainer.Run, names: Iterable[str]) -> None:
    for name in () if _together.index() else names:
        shutil.rmtree(run.directory / name, ignore_errors=True)


def _rows_of(run: trainer.Run) -> str:
    """The name as the run in the folder says it."""
    with contextlib.suppress(ValueError):  # it is damaged, and goes
        return run.settings.get("rows", _ROWS)
    return _ROWS


def resume(
    run: trainer.Run,
    settings: Settings,
    identity: Mapping[str, Any],
    state: trainer.TrainState,
    best: trainer.Best,
) -> tuple[trainer.TrainState, trainer.Best]:
    """The state of the newest good checkpoint, and the best so far; both as given if there is none.

    What was given anew of the settings is kept for the next time.

    Args:
        run: its folder.
        settings: of the run, as they are now.
        identity: ``data``, the digest of the rows, and ``base``, the model's fingerprint.
        state: as it starts.
        best: before any measurement.

    Raises:
        ValueError: when rows or base changed; or when there are checkpoints, and all are damaged or
            another adapter's.
    """
    begun = run.settings
    if changed := checkpoint.differences(begun["base"], identity["base"]):
        raise ValueError(f"--resume: the base model changed: {'; '.join(changed[:5])}")
    if begun["data"] != identity["data"]:
        raise ValueError(f"--resume: the rows of {' '.join(settings.data)} changed since")
    keep_settings(run, settings)
    if run.latest_step is None:
        return state, best
    number, saved, notes = run.restore(_kept(state), say=print)
    if notes.get("best"):
        best = best.resumed(notes["best"])
    return dataclasses.replace(state, step=jnp.int32(number), **saved), best


def best_adapter(
    run: trainer.Run, best: trainer.Best, state: trainer.TrainState
) -> tuple[int, Any]:
    """(step, adapter) of the best measurement; of ``state`` itself where that is lost."""
    number = int(state.step)
    if best.step is None:
        return number, state.lora
    print(f"best      {best.watch} {best.value:.4g}, after step {best.step}")
    if best.step == number:
        return number, state.lora
    if best.step in run.steps:
        found, saved, _ = run.restore(_kept(state), best.step, say=print)
        if found == best.step:
            return found, saved["lora"]
    print(f"best      the checkpoint of step {best.step} is lost: the adapter is the last one")
    return number, state.lora


def save(run: trainer.Run, number: int, state: trainer.TrainState, best: trainer.Best) -> None:
    """Keeps what the run needs to go on after this step; before the first that is nothing."""
    if number:
        notes = {"best": best.record()}
        run.save(number, _kept(state), notes=notes, best=best.step == number)


def _kept(state: trainer.TrainState) -> dict[str, Any]:
    """What a checkpoint holds; the key is the seed's, the step its name."""
    return {"lora": state.lora, "opt_state": state.opt_state}
