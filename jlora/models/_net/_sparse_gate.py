"""The largest values of an MLP's gate alone, as many as of normal ones would be above a limit.

You et al. 2025, "Spark Transformer", arXiv 2506.06644: a top-k without sorting.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sparsity(NamedTuple):
    """How much is cut off in one layer; a first dimension of layers before the scan."""

    limit: jax.Array  # in standard deviations above the mean
    cuts: jax.Array  # () bool


def sparsity_of(shares: Sequence[float]) -> Sparsity:
    """The limits below which lie such shares of the normal distribution; 0 cuts nothing."""
    normal = statistics.NormalDist()
    limits = [normal.inv_cdf(share) if share else 0.0 for share in shares]
    cuts = [share > 0 for share in shares]
    return Sparsity(jnp.array(limits, jnp.float32), jnp.array(cuts))


def largest(gate: jax.Array, sparsity: Sparsity) -> jax.Array:
    """How far each value is above the limit, 0 for those below; the gate where nothing is cut."""
    wide = gate.astype(jnp.float32)
    variance = jnp.maximum(wide.var(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    limit = wide.mean(axis=-1, keepdims=True) + sparsity.limit * jnp.sqrt(variance)
    return jnp.where(sparsity.cuts, jax.nn.relu(wide - limit).astype(gate.dtype), gate)
