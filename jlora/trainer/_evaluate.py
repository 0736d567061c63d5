"""How good an adapter is on rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from jlora.trainer._loggers._logger import numbers


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


# (frozen, lora) -> named numbers
Evaluator = Callable[[Any, Any], Mapping[str, Any]]


def evaluate(evaluators: Iterable[Evaluator], frozen: Any, lora: Any) -> dict[str, float]:
    """The named numbers of all evaluators, in their order.

    Training never notices: nothing of the state is changed, no key is taken.

    Args:
        evaluators: each takes ``(frozen, lora)`` and gives numbers by name; what does not apply is
            left out.
        frozen: the frozen tree.
        lora: the adapter as it is now.

    Raises:
        ValueError: when two give the same name, or one gives what is no number.

    Example:
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> norm = lambda frozen, lora: {"norm": jnp.linalg.norm(lora["a"])}
        >>> size = lambda frozen, lora: {"size": lora["a"].size}
        >>> jlora.trainer.evaluate([norm, size], {}, {"a": jnp.full(4, 3.0)})
        {'norm': 6.0, 'size': 4.0}
    """
    found: dict[str, float] = {}
    for evaluator in evaluators:
        its = numbers(evaluator(frozen, lora))
        if both := sorted(its.keys() & found.keys()):
            raise ValueError(f"two evaluators give {', '.join(both)}: expected other names")
        found |= {name: float(value) for name, value in its.items()}
    return found
