"""The optimizer of a run, and its learning rate."""

from __future__ import annotations

import optax

import jlora
from jlora import trainer
from jlora.finetune._settings import Settings


def optimizer(
    settings: Settings, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(what updates the adapter, the learning rate by the updates done) of so many steps.

    Args:
        settings: of the run.
        steps: updates in all.
    """
    learning_rate = trainer.schedule(
        settings.schedule,
        settings.learning_rate,
        steps=steps,
        warmup=round(settings.warmup * steps),
    )
    rule = trainer.update_rule(
        settings.optimizer,
        learning_rate,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        lora_plus=settings.lora_plus,
    )
    return jlora.optimizer(rule, freeze=settings.frozen_fields), learning_rate
