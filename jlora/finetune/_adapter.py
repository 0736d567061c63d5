"""Where a run's adapter starts: fresh, from data, or from a saved one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import jlora
from jlora.finetune._settings import STARTS_FROM_DATA, Settings

BATCHES_READ = 8  # of a start from data


def start(
    settings: Settings,
    model: Any,
    loss: Callable[..., Any],
    batches: Callable[[int], Any],
) -> tuple[jlora.LoraConfig, Any, Any]:
    """(config, frozen, lora) at the start; the same again when a run is resumed.

    Args:
        settings: of the run.
        model: whose parameters are split.
        loss: ``(params, batch) -> (sum, count)``: what a start from data lowers.
        batches: ``n -> batch``, n from 0.

    Raises:
        ValueError: as `jlora.split`; when nothing is a target, say.
    """
    key = jax.random.key(settings.seed)
    from_data = settings.init in STARTS_FROM_DATA
    config = settings.lora if from_data else settings.adapter_config
    # of the model, not the loss: in the loss's loop over chunks the head is a product like others
    axes = jlora.trace_axes(model.apply, model.params, batches(0)["tokens"])
    frozen, lora = jlora.split(model.params, config, key, axes=axes)
    if not from_data:
        return config, frozen, lora
    print(f"start     reading {BATCHES_READ} batches for {settings.init} ...", flush=True)
    few = [batches(step) for step in range(BATCHES_READ)]
    if settings.init == "eva":
        frozen, lora, config = jlora.eva(loss, frozen, lora, few, config, key)
    else:
        summed = lambda *args: loss(*args)[0]  # noqa: E731
        frozen, lora, config = jlora.lora_ga(summed, frozen, lora, few, config, key)
    return config, frozen, lora
