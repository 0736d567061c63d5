"""Where a run's adapter starts: fresh, from data, or from a saved one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

import jlora
from jlora import _placement, checkpoint, models, peft, trainer
from jlora.finetune import _kept_start
from jlora.finetune._settings import STARTS_FROM_DATA, Settings

BATCHES_READ = 8  # of a start from data


def start(
    settings: Settings,
    model: Any,
    loss: Callable[..., Any],
    batches: Callable[[int], Any],
    run: trainer.Run | None = None,
    *,
    whole: tuple[str, ...] = (),
) -> tuple[jlora.LoraConfig, Any, Any]:
    """(config, frozen, lora) at the start; the same again for a run that goes on.

    On a mesh the adapter lies as its weights do.

    Args:
        settings: of the run.
        model: whose parameters are split.
        loss: ``(params, batch) -> (sum, count)``: what a start from data lowers.
        batches: ``n -> batch``, n from 0.
        whole: patterns of leaves that train whole beside those of the settings.
        run: that goes on, in whose folder `keep_start` left its start.

    Raises:
        ValueError: as `jlora.split`; when nothing is a target, say.
    """
    if run is not None and _kept_start.kept(run):
        config, frozen, lora = _kept_start.restored(run, settings, model)
    elif settings.adapter:
        lora, config = _saved(settings, model)
        frozen = model.params
    else:
        config, frozen, lora = _fresh(settings, model, loss, batches, whole)
    if model.layout is not None and not of_shapes(model):
        lora = jax.tree.map(_placement.placed, lora, model.layout.of_adapter(frozen, lora))
    return config, frozen, lora


def _fresh(
    settings: Settings, model: Any, loss: Any, batches: Any, whole: tuple[str, ...]
) -> tuple[jlora.LoraConfig, Any, Any]:
    """What `start` gives where no adapter is saved yet."""
    key = jax.random.key(settings.seed)
    from_data = settings.init in STARTS_FROM_DATA
    config = settings.lora if from_data else settings.adapter_config
    own = (config.train,) if isinstance(config.train, str) else config.train
    config = dataclasses.replace(config, train=tuple(filter(None, (*own, *whole))))
    # of the model, not the loss: in the loss's loop over chunks the head is a product like others
    axes = jlora.trace_axes(model.apply, model.params, batches(0)["tokens"])
    frozen, lora = jlora.split(model.params, config, key, axes=axes)
    if not from_data:
        # as a run that goes on forms it
        return config, jlora.frozen_beside(model.params, lora, config), lora
    print(f"start     reading {BATCHES_READ} batches for {settings.init} ...", flush=True)
    few = [batches(step) for step in range(BATCHES_READ)]
    if settings.init == "eva":
        frozen, lora, config = jlora.eva(loss, frozen, lora, few, config, key)
    else:
        summed = lambda *args: loss(*args)[0]  # noqa: E731
        frozen, lora, config = jlora.lora_ga(summed, frozen, lora, few, config, key)
    return config, frozen, lora


def _saved(settings: Settings, model: Any) -> tuple[Any, jlora.LoraConfig]:
    """(lora, config) of the adapter that the settings name."""
    directory = peft.located(settings.adapter)
    if (directory / "adapter.json").exists():
        return checkpoint.restore(directory, base=None if of_shapes(model) else model.params)
    if peft.vocabulary(directory, model) != models.Vocabulary():
        raise ValueError(
            f"the adapter {settings.adapter} brings tokens of its own: merge it first, with "
            "`python -m jlora merge`, and train on what that writes"
        )
    return peft.load(directory, model)


def of_shapes(model: Any) -> bool:
    """Whether the model has shapes in the place of arrays."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.params))
