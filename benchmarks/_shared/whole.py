"""How the trainer's step trains a plain tree whole, which is what LoRA is compared with."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jlora import trainer


def whole_step(loss: Callable[..., Any], tx: optax.GradientTransformation) -> Any:
    """The step of a loss ``(params, batch) -> (sum, count)``; nothing is frozen: None."""
    return trainer.make_step(
        lambda _, params, batch, dropout_key: loss(params, batch),
        tx,
        trains=lambda params: jax.tree.map(lambda _: True, params),
    )
