"""The train step that every benchmark measures: loss, gradient and optimizer."""

from collections.abc import Callable
from typing import Any

import jax
import optax


def train_step(loss: Callable[..., jax.Array], tx: optax.GradientTransformation) -> Any:
    """(trained, state, *rest) -> (trained, state, value), jitted; the first two are donated.

    ``loss`` takes what trains first, and then the rest.
    """

    def step(trained, state, *rest):
        value, grads = jax.value_and_grad(loss)(trained, *rest)
        updates, state = tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, value

    return jax.jit(step, donate_argnums=(0, 1))


def adapter_first(lifted: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A lifted loss (frozen, lora, *rest) as one of (lora, frozen, *rest)."""
    return lambda lora, frozen, *rest: lifted(frozen, lora, *rest)
