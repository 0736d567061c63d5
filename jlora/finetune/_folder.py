"""What a run that goes on finds in its folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jlora import checkpoint, trainer
from jlora.finetune._settings import Settings


def begin(run: trainer.Run, settings: Settings, identity: Mapping[str, Any]) -> None:
    """Begins the run afresh; the adapters that another run left in the folder are deleted.

    Args:
        run: its folder.
        settings: of the run.
        identity: as for `require_same`.

    Raises:
        ValueError: when the folder can't be made.
    """
    run.begin({"settings": settings.flat(), **identity})
    for name in ("adapter", "last", "start"):
        shutil.rmtree(run.directory / name, ignore_errors=True)


def require_same(run: trainer.Run, identity: Mapping[str, Any]) -> None:
    """Nothing, if a resumed run has the rows and the base that it was begun with.

    Args:
        run: its folder.
        identity: ``data``, the digest of the rows, and ``base``, the model's fingerprint.

    Raises:
        ValueError: when either changed.
    """
    begun = run.settings
    if changed := checkpoint.differences(begun["base"], identity["base"]):
        raise ValueError(f"--resume: the base model changed: {'; '.join(changed[:5])}")
    if begun["data"] != identity["data"]:
        sources = begun["settings"]["data"]
        sources = sources if isinstance(sources, str) else " ".join(sources)
        raise ValueError(f"--resume: the rows of {sources} changed since")


def last_state(
    run: trainer.Run, state: trainer.TrainState, best: trainer.Best
) -> tuple[trainer.TrainState, trainer.Best]:
    """The state of the newest good checkpoint, and the best so far; both as given if there is none.

    Raises:
        ValueError: when there are checkpoints, and all are damaged or another adapter's.
    """
    if run.latest_step is None:
        return state, best
    number, saved, notes = run.restore(_kept(state), say=print)
    if notes.get("best"):
        best = best.resumed(notes["best"])
    return dataclasses.replace(state, step=jnp.int32(number), **saved), best


def state_at(run: trainer.Run, number: int, state: trainer.TrainState) -> trainer.TrainState:
    """The state of this checkpoint, in the structure of ``state``.

    Raises:
        ValueError: when it is damaged, or not there.
    """
    _, saved, _ = run.restore(_kept(state), step=number)
    return dataclasses.replace(state, step=jnp.int32(number), **saved)


def save(run: trainer.Run, number: int, state: trainer.TrainState, best: trainer.Best) -> None:
    """Keeps what the run needs to go on after this step; before the first that is nothing."""
    if number:
        notes = {"best": best.record()}
        run.save(number, _kept(state), notes=notes, best=best.step == number)


def _kept(state: trainer.TrainState) -> dict[str, Any]:
    """What a checkpoint holds; the key is the seed's, the step its name."""
    return {"lora": state.lora, "opt_state": state.opt_state}
