"""Which experts a token goes to, and how much each of them counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jlora.models._net._part_configs import Experts


def choose(
    experts: Experts, scores: jax.Array, correction: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(the chosen experts' weights, float32, their numbers), each (tokens, chosen).

    Args:
        experts: of the decoder.
        scores: (tokens, experts) float32, the router's.
        correction: (experts,), added to the scores for the choice alone, by which training without
            a loss for it keeps experts evenly busy (Wang et al. 2024, arXiv 2408.15664).
    """
    shares = jax.nn.sigmoid(scores) if experts.sigmoid else jax.nn.softmax(scores, axis=-1)
    if correction is None and experts.groups == 1:
        shares, chosen = jax.lax.top_k(shares, experts.chosen)
    else:
        ranked = shares if correction is None else shares + correction.astype(jnp.float32)
        ranked = ranked if experts.groups == 1 else _in_the_best_groups(experts, ranked)
        _, chosen = jax.lax.top_k(ranked, experts.chosen)
        shares = jnp.take_along_axis(shares, chosen, axis=-1)
    if experts.normalised:
        total = shares.sum(axis=-1, keepdims=True)
        shares = shares / (total + 1e-20 if experts.sigmoid else total)  # sigmoids may all be 0
    return shares if experts.scale == 1.0 else shares * experts.scale, chosen


def _in_the_best_groups(experts: Experts, ranked: jax.Array) -> jax.Array:
    """The same with -inf for all experts but those of the best groups (arXiv 2405.04434, 2.2.2)."""
    groups = ranked.reshape(-1, experts.groups, experts.count // experts.groups)
    best, _ = jax.lax.top_k(groups, experts.best_of_group)
    _, chosen = jax.lax.top_k(best.sum(axis=-1), experts.chosen_groups)
    kept = (jnp.arange(experts.groups) == chosen[..., None]).any(axis=-2)  # (tokens, groups)
    return jnp.where(kept[..., None], groups, -jnp.inf).reshape(ranked.shape)
