"""What a run leaves behind for those who use its adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jlora
from jlora import checkpoint, peft
from jlora._frozen_leaf import has_frozen_leaf
from jlora.finetune._kept_start import took_weight
from jlora.finetune._settings import Settings
from jlora.trainer._loggers._logger import number

# What a run leaves in its folder beside its own files.
LEFT_BEHIND = {"adapter", "last", "peft", "mlx"}


def save_adapters(
    folder: Path,
    adapters: Mapping[str, tuple[int, Any]],
    *,
    settings: Settings,
    config: jlora.LoraConfig,
    model: Any,
    frozen: Any,
    start: Any,
    scores: Mapping[str, Any],
    about: Mapping[str, Any],
) -> tuple[Any, ...]:
    """Saves each adapter in a folder of its name; gives back the weights that it makes, read again.

    Merged into the base: ``(params,)``; beside one that is kept in a few bits: ``(frozen, lora)``.

    Args:
        folder: the run's.
        adapters: (step, adapter) by name; ``adapter`` is the one to use, ``last`` is saved beside
            it where it is another.
        settings: of the run.
        config: of the adapters.
        model: the base.
        frozen: what the adapters stand beside.
        start: the adapter as it started.
        scores: for the card of another format.
        about: what the task says beside the settings, as the system message that all rows share.

    Raises:
        OSError: when one can't be written; what was there stays.
    """
    if adapters["last"][0] == adapters["adapter"][0]:
        adapters = {"adapter": adapters["adapter"]}
    for name, (step, lora) in adapters.items():
        of_base, its_config = lora, config
        if took_weight(frozen, model.params):
            of_base, its_config = jlora.rebase(lora, start, config)
        told = {
            "model": settings.model,
            "dtype": settings.dtype,
            **({"quantize": settings.quantize} if settings.quantized else {}),
            **about,
            "step": step,
            "settings": settings.flat(),
        }
        kept = {"base": model.params, "metadata": told, "overwrite": True}
        checkpoint.save(folder / name, of_base, its_config, **kept)
        if name == "adapter" and settings.save_as != "jlora":
            peft.publish(
                folder / settings.save_as,
                of_base,
                its_config,
                model,
                format=settings.save_as,
                about=told,
                scores=scores,
                overwrite=True,
            )
    for name in LEFT_BEHIND - {*adapters, settings.save_as}:  # of an earlier end
        shutil.rmtree(folder / name, ignore_errors=True)
    restored, _ = checkpoint.restore(folder / "adapter", base=model.params)
    if has_frozen_leaf(model.params):  # merged they would be large
        return model.params, restored
    return (jlora.merge(model.params, restored),)


def evaluated(scores: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a measurement, as metrics name them."""
    return {f"eval/{name}": value for name, value in scores.items() if isinstance(value, float)}


def plain(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores with Python's own numbers, as JSON holds them."""
    numbers = {name: number(value) for name, value in scores.items()}
    return {**scores, **{name: float(its) for name, its in numbers.items() if its is not None}}


def shown(values: Mapping[str, Any]) -> dict[str, float]:
    """What the progress bar shows of a step's numbers."""
    pace = {"tokens/s": values["tokens"] / max(values["seconds"], 1e-3)}
    measured = {n: v for n, v in values.items() if n.startswith("eval/")}
    return {"loss": values["loss"], **pace, **measured}
