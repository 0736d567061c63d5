"""How good an adapter is on rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax


def mean_loss(
    loss: Callable[..., tuple[jax.Array, jax.Array]],
    frozen: Any,
    lora: Any,
    batches: Iterable[Any],
) -> float:
    """The loss over all batches: the sum of sums over the sum of counts.

    It is the same however the rows are spread over batches, and no dropout is applied.

    Args:
        loss: as for `make_step`, jitted: this calls it once a batch.
        frozen: the frozen tree.
        lora: the adapter.
        batches: the batches themselves.

    Raises:
        ValueError: when nothing is counted: no batch, or batches without labels.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> loss = jax.jit(jlora.lift(lambda params, x: ((x @ params["kernel"]).sum(), x.shape[0])))
        >>> jlora.trainer.mean_loss(loss, frozen, lora, [jnp.ones((4, 7)), jnp.zeros((1, 7))])
        28.0
    """
    sums = [loss(frozen, lora, batch) for batch in batches]
    count = sum(float(count) for _, count in sums)
    if not count:
        raise ValueError("nothing to measure: expected batches in which something is counted")
    return sum(float(total) for total, _ in sums) / count
