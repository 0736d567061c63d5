"""One update: the loss, its gradient and the optimizer in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jlora import _optim
from jlora.trainer._in_place import InPlace
from jlora.trainer._state import TrainState

# (frozen, lora, batch, dropout_key=key) -> (sum over what is counted, how much was counted)
Loss = Callable[..., tuple[jax.Array, jax.Array]]
Step = Callable[[Any, TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    trains: Callable[[Any], Any] = _optim.mask,
) -> InPlace:
    """The jitted function ``(frozen, state, batch) -> (state, metrics)``, one update.

    The gradient is that of sum / count over the whole batch. The frozen weights are an argument, so
    they are no constants of the program; the state is donated, so it is updated in place and the
    one that was given is gone.

    An update whose loss or gradient is not finite changes neither adapter nor optimizer: both come
    back bit for bit, with the next number. So does a batch in which nothing is counted: it has no
    mean, and its loss is NaN.

    Args:
        loss: a lifted function ``(frozen, lora, batch, dropout_key=key)`` that gives a sum and how
            much it was summed over: answer tokens, rows.
        tx: from `jlora.optimizer`. It sees the gradient of the whole batch, once an update.
        accumulate: in how many parts the rows of a batch are computed, one after the other: the
            memory is that of one part, the update that of the whole. Every array of the batch has
            its rows first, and their number is a multiple of this.
        trains: ``lora -> tree of bool``: over what the gradient's norm is taken.

    Returns:
        the step. Its metrics are arrays: ``loss``, the mean; ``grad_norm``; ``count``; ``finite``.

    Raises:
        ValueError: when ``accumulate`` is below 1; when the step is traced, if it does not divide
            the rows.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> def loss(params, batch):
        ...     errors = (batch["x"] @ params["kernel"] - batch["y"]) ** 2
        ...     return errors.sum(), errors.size
        >>> tx = jlora.optimizer(optax.sgd(1e-3))
        >>> step = jlora.trainer.make_step(jlora.lift(loss), tx, accumulate=2)
        >>> state = jlora.trainer.init(lora, tx, jax.random.key(1))
        >>> batch = {"x": jnp.ones((4, 7)), "y": jnp.ones((4, 5))}
        >>> state, metrics = step(frozen, state, batch)
        >>> int(state.step), float(metrics["loss"])
        (1, 36.0)
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}: expected a number of parts, at least 1")
    mean_and_gradient = _of_parts(loss, accumulate) if accumulate > 1 else _of_whole(loss)

    def step(frozen: Any, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        number = state.step + 1
        key = jax.random.fold_in(state.key, number)
        mean, count, grads = mean_and_gradient(frozen, state.lora, batch, key)
        told = zip(jax.tree.leaves(grads), jax.tree.leaves(trains(state.lora)), strict=True)
        norm = optax.tree.norm([gradient for gradient, trained in told if trained])
        updates, opt_state = tx.update(grads, state.opt_state, state.lora)
        lora = optax.apply_updates(state.lora, updates)
        finite = jnp.isfinite(mean) & jnp.isfinite(norm)
        lora, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (lora, opt_state),
            (state.lora, state.opt_state),
        )
        metrics = {"loss": mean, "grad_norm": norm, "count": count, "finite": finite}
        return TrainState(number, lora, opt_state, state.key), metrics

    return InPlace(step)


def _of_whole(loss: Loss) -> Callable[..., Any]:
    """(frozen, lora, batch, key) -> (mean, count, gradient), all rows at once."""

    def mean_and_gradient(frozen: Any, lora: Any, batch: Any, key: jax.Array) -> Any:
        def mean(lora: Any) -> tuple[jax.Array, jax.Array]:
            total, count = loss(frozen, lora, batch, dropout_key=key)
            return total / count, jnp.asarray(count)

        (value, count), grads = jax.value_and_grad(mean, has_aux=True)(lora)
        return value, count, grads

    return mean_and_gradient


def _of_parts(loss: Loss, parts: int) -> Callable[..., Any]:
    """The same, a part of the rows after the other: sums are added up and divided at the end."""

    def mean_and_gradient(frozen: Any, lora: Any, batch: Any, key: jax.Array) -> Any:
        def of_part(at: jax.Array, part: Any) -> Any:
            def total(lora: Any) -> tuple[jax.Array, jax.Array]:
                total, count = loss(frozen, lora, part, dropout_key=jax.random.fold_in(key, at))
                return total, jnp.asarray(count)

            (value, count), grads = jax.value_and_grad(total, has_aux=True)(lora)
            return value, count, grads

        split = jax.tree.map(functools.partial(_rows_in_parts, parts), batch)
        first = jax.eval_shape(of_part, jnp.arange(parts)[0], jax.tree.map(lambda x: x[0], split))
        start = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), first)
        (total, count, grads), _ = jax.lax.scan(
            lambda sums, at_part: (jax.tree.map(jnp.add, sums, of_part(*at_part)), None),
            start,
            (jnp.arange(parts), split),
        )
        return total / count, count, jax.tree.map(lambda g: (g / count).astype(g.dtype), grads)

    return mean_and_gradient


def _rows_in_parts(parts: int, array: jax.Array) -> jax.Array:
    """(rows, ...) as (parts, rows / parts, ...): each device along the rows has some of each."""
    if array.shape[0] % parts:
        raise ValueError(
            f"accumulate={parts} parts of {array.shape[0]} rows: expected a divisor of the rows"
        )
    return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)
