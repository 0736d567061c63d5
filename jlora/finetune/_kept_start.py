"""The start that a run keeps, so that it goes on from the very same one on any device.

A start that takes weight, or reads batches, may come out differently where it is computed again: A
and B that trained since then would not belong to it. So the adapter as it started is saved, as any
adapter is; what it took out of the frozen weights is formed again from its factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import jlora
from jlora import checkpoint, trainer
from jlora.finetune._settings import STARTS_FROM_DATA, Settings

NAME = "start"  # of the folder, as the first run in a run's folder calls it


def folder_of(run: trainer.Run) -> Path:
    """Where the run keeps its start."""
    return run.directory / run.settings.get(NAME, NAME)


def took_weight(frozen: Any, params: Any) -> bool:
    """Whether the start moved weight of the base into the adapter: the frozen arrays are others."""
    pairs = zip(jax.tree.leaves(frozen), jax.tree.leaves(params), strict=True)
    return any(left is not whole for left, whole in pairs)


def kept(run: trainer.Run) -> bool:
    """Whether a whole start is there."""
    return (folder_of(run) / "adapter.json").exists()


def keep_start(
    run: trainer.Run,
    settings: Settings,
    config: jlora.LoraConfig,
    frozen: Any,
    lora: Mapping[str, Any],
    model: Any,
) -> None:
    """Saves the adapter as it starts in the run's folder, unless it is there or is drawn anew.

    Random starts are the same again from the seed.

    Args:
        run: its folder.
        settings: of the run.
        config: from `start`, as the two that follow.
        frozen: what the adapter stands beside.
        lora: the adapter at its start.
        model: the base.

    Raises:
        OSError: when it can't be written.
    """
    drawn = not settings.adapter and settings.init not in STARTS_FROM_DATA
    if kept(run) or (drawn and not took_weight(frozen, model.params)):
        return
    checkpoint.save(folder_of(run), dict(lora), config, base=model.params, overwrite=True)


def restored(run: trainer.Run, settings: Settings, model: Any) -> tuple[jlora.LoraConfig, Any, Any]:
    """(config, frozen, lora) at the start, from what `keep_start` saved.

    Raises:
        ValueError: when it is damaged, or the base is another.
    """
    lora, config = checkpoint.restore(folder_of(run), base=model.params)
    if settings.adapter:  # of the base as it is, wherever it started
        return config, model.params, lora
    return config, jlora.frozen_beside(model.params, lora, config), lora
