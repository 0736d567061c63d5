"""LoftQ: a quantised base and an adapter that begins with what rounding lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jlora import _paths
from jlora._config import LoraConfig
from jlora._lora_dict import Lora, of_leaves
from jlora._lowrank import Axes
from jlora._merge import unmerge
from jlora._quantize import dequantize, quantize
from jlora._split import split


def loftq(
    params: Any,
    format: str,
    config: LoraConfig,
    key: jax.Array,
    *,
    axes: Mapping[str, Axes] | None = None,
    iterations: int = 1,
) -> tuple[Any, Lora]:
    """The pair (frozen, lora) whose sum is as near to the weights as rank and format allow.

    The adapted weights are quantised, and ``scaling * A B`` is the truncated singular value
    decomposition of what that lost. More than once, each is made again of what the other leaves:
    ``Q = quantize(W - scaling * A B)``, ``scaling * A B = SVD_r(W - Q)``.

    Args:
        params: any pytree of arrays: the weights as they were before any rounding.
        format: as for `quantize`.
        config: as for `split`; what it targets is quantised. Its ``init`` is not read.
        key: a random key.
        axes: as for `split`.
        iterations: how often.

    Returns:
        frozen: with a `QuantizedWeight` in the place of each adapted weight.
        lora: from a leaf's path to its node, B not zero.

    Raises:
        ValueError: as `quantize` and `split`; when the method's delta is no plain A B.

    Source: Li et al. 2023, arXiv 2310.08659, algorithm 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 48))}
        >>> config = jlora.LoraConfig(targets="kernel", rank=8)
        >>> frozen, lora = jlora.loftq(params, "nf4", config, jax.random.key(1))
        >>> plain, sum_ = jlora.dequantize(frozen)["kernel"], jlora.merge(frozen, lora)["kernel"]
        >>> error = lambda weight: float(jnp.abs(weight - params["kernel"]).mean())
        >>> error(sum_) < 0.8 * error(plain)
        True
    """
    if config.method != "lora":
        raise ValueError(
            f"loftq starts plain LoRA, whose delta is A B: method is {config.method!r}"
        )
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}: expected at least 1")
    weights, structure = _paths.flatten(params)
    start = dataclasses.replace(config, init="pissa", dropout=0.0)
    _, lora = split(params, dataclasses.replace(config, init="kaiming"), key, axes=axes)
    paths = tuple(of_leaves(lora))
    frozen = params
    for number in range(iterations):
        rest = unmerge(params, lora) if number else params
        frozen = quantize(rest, format, targets=lambda path, _: path in paths, axes=axes)
        rounded, _ = _paths.flatten(dequantize(frozen))
        lost = {
            path: (weight.astype(jnp.float32) - rounded[path]) if path in paths else weight
            for path, weight in weights.items()
        }
        _, found = split(jax.tree.unflatten(structure, lost.values()), start, key, axes=axes)
        lora = {path: _factors_of(found[path], node) for path, node in lora.items()}
    return frozen, lora


def _factors_of(found: Any, node: Any) -> Any:
    """The node with the factors that were found; its dropout and dtype stay."""
    if not hasattr(node, "a"):
        return node
    a, b = (getattr(found, name).astype(getattr(node, name).dtype) for name in "ab")
    return dataclasses.replace(node, a=a, b=b)
