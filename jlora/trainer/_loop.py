"""The loop: `iterate` gives each update to a ``for`` of your own, `fit` runs callbacks instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from jlora.trainer._state import TrainState
from jlora.trainer._step import Step


class Update(NamedTuple):
    """What is known after an update. The next one takes its state: keep a copy, or save it now.

    Example:
        >>> import jlora
        >>> update = jlora.trainer.Update(3, None, {"loss": 0.5}, last=True)
        >>> update.number, update.last
        (3, True)
    """

    number: int  # updates done, counted from the run's first
    state: TrainState
    metrics: dict[str, jax.Array]  # of this step; reading one waits for the device
    last: bool  # whether it is the loop's last


def iterate(
    step: Step,
    frozen: Any,
    state: TrainState,
    batches: Callable[[int], Any],
    *,
    steps: int,
) -> Iterator[Update]:
    """Yields an `Update` after each step, from the state's number up to ``steps``.

    While the device works on a batch the next one is made. To stop, leave the ``for``: the last
    `Update` holds the state.

    Args:
        step: from `make_step`.
        frozen: the frozen tree.
        state: from `init`, or one that was saved.
        batches: ``n -> batch``, n counted from 0: a function of the number alone, so that a run
            that goes on sees the batches of one that never stopped.
        steps: updates in all, those already done included.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> loss = lambda params, x: (((x @ params["kernel"]) ** 2).sum(), x.shape[0])
        >>> tx = jlora.optimizer(optax.adam(0.1))
        >>> step = jlora.trainer.make_step(jlora.lift(loss), tx)
        >>> state = jlora.trainer.init(lora, tx, jax.random.key(1))
        >>> batches = lambda n: jax.random.normal(jax.random.key(n), (4, 7))
        >>> for update in jlora.trainer.iterate(step, frozen, state, batches, steps=3):
        ...     losses = update.metrics["loss"]
        >>> update.number, update.last
        (3, True)
    """
    number = int(state.step)
    batch = batches(number) if number < steps else None
    while number < steps:
        state, metrics = step(frozen, state, batch)
        number += 1
        if number < steps:
            batch = batches(number)  # while the device works on this one
        yield Update(number, state, metrics, last=number == steps)


Callback = Callable[[Update], Any]


def every(count: int, do: Callback, *, last: bool = True) -> Callback:
    """``do`` as a callback that acts on each ``count``-th update, and on the last one.

    Args:
        count: updates between two calls.
        do: takes an `Update`.
        last: whether it acts on the last update whatever its number.

    Raises:
        ValueError: when ``count`` is below 1.

    Example:
        >>> import jlora
        >>> seen = []
        >>> callback = jlora.trainer.every(2, lambda update: seen.append(update.number))
        >>> for number in (1, 2, 3, 4, 5):
        ...     _ = callback(jlora.trainer.Update(number, None, {}, last=number == 5))
        >>> seen
        [2, 4, 5]
    """
    if count < 1:
        raise ValueError(f"every {count} updates: expected at least 1")

    def callback(update: Update) -> Any:
        if update.number % count == 0 or (last and update.last):
            return do(update)
        return None

    return callback


def fit(
    step: Step,
    frozen: Any,
    state: TrainState,
    batches: Callable[[int], Any],
    *,
    steps: int,
    callbacks: Iterable[Callback] = (),
) -> TrainState:
    """The state after ``steps`` updates, or after the update at which a callback said True.

    Args:
        step: from `make_step`.
        frozen: the frozen tree.
        state: from `init`, or one that was saved.
        batches: as for `iterate`.
        steps: updates in all, those already done included.
        callbacks: each is given every `Update`, in this order: to evaluate, to save, to log. One
            that returns True ends the run once the others have had this update too.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> loss = lambda params, x: (((x @ params["kernel"]) ** 2).sum(), x.shape[0])
        >>> tx = jlora.optimizer(optax.adam(0.1))
        >>> step = jlora.trainer.make_step(jlora.lift(loss), tx)
        >>> state = jlora.trainer.init(lora, tx, jax.random.key(1))
        >>> batches = lambda n: jax.random.normal(jax.random.key(n), (4, 7))
        >>> enough = lambda update: update.number == 2
        >>> state = jlora.trainer.fit(step, frozen, state, batches, steps=9, callbacks=[enough])
        >>> int(state.step)
        2
    """
    callbacks = list(callbacks)
    for update in iterate(step, frozen, state, batches, steps=steps):
        state = update.state
        said = [callback(update) for callback in callbacks]
        if True in said:
            break
    return state
