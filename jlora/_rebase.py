"""An adapter that started with part of the weight, as one of the original base."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora._config import LoraConfig
from jlora._lora_dict import Lora
from jlora._node import Node
from jlora._registry import method_class


def rebase(
    lora: Mapping[str, Node], start: Mapping[str, Node], config: LoraConfig
) -> tuple[Lora, LoraConfig]:
    """The same adapted function on the original parameters, with twice the rank.

    PiSSA, OLoRA and LoRA-GA take ``scaling * A0 B0`` out of the frozen weight. What they learn is
    ``scaling * (A B - A0 B0)`` on the original one: an adapter of factors (A, A0) and (B, -B0),
    which every program that knows LoRA can read (Meng et al. 2024, arXiv 2404.02948, appendix C).

    A method whose nodes stay as wide (`jlora.extend.Node.since`) keeps its configuration.

    Args:
        lora: the trained adapter.
        start: the adapter as `split` gave it.
        config: the configuration that it was split with.

    Returns:
        lora: for the parameters that were split; nodes without A and B are as they were.
        config: with the ranks doubled, the scaling kept, and a start that moves no weight.

    Raises:
        ValueError: when the two adapters are not of the same leaves and ranks, or some nodes became
            wider and some did not.

    Example:
        >>> import dataclasses
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (7, 5))}
        >>> config = jlora.LoraConfig(targets="kernel", rank=2, init="pissa")
        >>> frozen, start = jlora.split(params, config, jax.random.key(1))
        >>> trained = dataclasses.replace(start["kernel"], b=start["kernel"].b + 1)
        >>> lora = {"kernel": trained}
        >>> of_params, config = jlora.rebase(lora, start, config)
        >>> merged, same = jlora.merge(frozen, lora), jlora.merge(params, of_params)
        >>> config.rank, bool(jnp.allclose(merged["kernel"], same["kernel"], atol=1e-5))
        (4, True)
    """
    problems = [path for path in {**lora, **start} if not _alike(lora.get(path), start.get(path))]
    if problems:
        raise ValueError(
            f"lora and start are not one adapter, later and at its start: {', '.join(problems)}"
        )
    wider = {path: node.since(start[path]) for path, node in lora.items()}
    growth = _growth(start, wider)
    if growth == 1:  # nothing was in the weight, so nothing had to be told apart
        return wider, config
    of_alpha = growth**0.5 if config.rslora else growth
    moved = method_class(str(config.method)).moves_weight(config.init)
    return wider, dataclasses.replace(
        config,
        init=LoraConfig.init if moved else config.init,  # nothing is taken out any more
        rank=growth * config.rank,
        alpha=of_alpha * config.alpha,
        rank_pattern=_times(growth, config.rank_pattern),
        alpha_pattern=_times(of_alpha, config.alpha_pattern),
    )


def _growth(start: Mapping[str, Node], wider: Mapping[str, Node]) -> int:
    """How many times as wide the targeted nodes became.

    Raises:
        ValueError: when they differ in it: no configuration says that.
    """
    widths = {
        path: (start[path].rank, node.rank)
        for path, node in wider.items()
        if node.targeted and node.rank
    }
    times = {after / before for before, after in widths.values()} or {1.0}
    if len(times) > 1 or not min(times).is_integer():
        each = ", ".join(f"{path} from {a} to {b}" for path, (a, b) in widths.items())
        raise ValueError(
            "rebase: what was learned since the start has other ranks, not as many times as large "
            f"for each leaf: {each}. Expected Node.since to treat all leaves of a method alike"
        )
    return int(min(times))


def _times(factor: Any, patterns: Mapping[str, Any]) -> dict[str, Any]:
    return {
        pattern: tuple(factor * v for v in value) if isinstance(value, tuple) else factor * value
        for pattern, value in patterns.items()
    }


def _alike(one: Node | None, other: Node | None) -> bool:
    return (
        type(one) is type(other)
        and one is not None
        and (
            (one.shape, one.rank) == (other.shape, other.rank)  # type: ignore
        )
    )
