"""Several adapters of one base as one: the sum of what each adds, times its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jlora import _words
from jlora._lora_dict import Lora
from jlora._node import Node

METHODS = ("cat", "linear")


def combine(
    adapters: Sequence[Mapping[str, Node]], weights: Sequence[Any], *, method: str = "cat"
) -> Lora:
    """One adapter of the same base, for ``W + w1 * delta1 + w2 * delta2 + ...``.

    - ``"cat"`` is that sum, exactly: A and B are joined along the rank, which becomes the sum of
      the ranks.
    - ``"linear"`` is near it and keeps the rank: the sums of ``sqrt(w * scaling) * A`` and of
      ``sqrt(w * scaling) * B``, whose product also has each A times every other B.

    Both are PEFT's ``add_weighted_adapter``. A leaf that some adapters leave out is the sum of the
    others. The scaling becomes 1 (so ``alpha`` is the rank), and dropout is the first adapter's.
    Biases on B and trained rows are summed in either way. What is no sum (DoRA's magnitudes, leaves
    that train whole) can only be taken over from one adapter, of weight 1: else `merge` one adapter
    after the other. An adapter whose start took weight goes through `rebase` first.

    Args:
        adapters: as `split` or a file gave them.
        weights: a number for each, which may be negative.
        method: ``"cat"`` or ``"linear"``.

    Raises:
        ValueError: naming every leaf of which the adapters can't be combined, and why.

    Example:
        >>> import dataclasses
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"kernel": jnp.ones((7, 5))}
        >>> def adapter(rank):
        ...     config = jlora.LoraConfig(targets="kernel", rank=rank)
        ...     frozen, lora = jlora.split(params, config, jax.random.key(rank))
        ...     return {"kernel": dataclasses.replace(lora["kernel"], b=jnp.ones((rank, 5)))}
        >>> both = jlora.combine([adapter(2), adapter(3)], [0.5, -1.0])
        >>> both["kernel"].rank
        5
        >>> one, other = (jlora.merge(params, adapter(rank))["kernel"] for rank in (2, 3))
        >>> wanted = 1 + 0.5 * (one - 1) - (other - 1)
        >>> bool(jnp.allclose(jlora.merge(params, both)["kernel"], wanted, atol=1e-5))
        True
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: expected one of {', '.join(METHODS)}")
    if len(adapters) != len(weights) or not adapters:
        raise ValueError(
            f"{len(adapters)} adapters and {len(weights)} weights: expected a weight for each, and "
            "at least one adapter"
        )
    if len(adapters) == 1:
        method = "linear"  # as PEFT does; one product, either way
    combined, problems = {}, []
    for path in dict.fromkeys(path for adapter in adapters for path in adapter):
        has = [at for at, adapter in enumerate(adapters) if path in adapter]
        first, *others = (adapters[at][path] for at in has)
        try:
            _require_alike(first, others)
            combined[path] = first.combined(others, [weights[at] for at in has], method)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ValueError(
            f"the adapters can't be combined:{_words.first_few(problems)}\nExpected leaves whose "
            "changes have a sum; merge puts one adapter after the other"
        )
    return combined


def _require_alike(first: Node, others: Sequence[Node]) -> None:
    for other in others:
        if type(other) is not type(first):
            raise ValueError(f"of the methods {first.kind!r} and {other.kind!r}")
        if other.shape != first.shape:
            raise ValueError(f"for the shapes {first.shape} and {other.shape}: not of one base")
