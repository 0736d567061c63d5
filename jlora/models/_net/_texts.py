"""Where the texts of a packed sequence begin and end: what a token of each may see."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Texts(NamedTuple):
    """The texts that share a sequence, by token."""

    positions: jax.Array  # (batch, length), each token's place in its own text
    lengths: jax.Array  # (batch, length), of its text
    mask: jax.Array  # (batch, length, length), which tokens a token sees: its text's, up to itself


def texts_of(segments: jax.Array) -> Texts:
    """The texts of (batch, length) segments: one begins wherever the number changes.

    The numbers themselves mean nothing, so that others in their place change nothing.
    """
    length = segments.shape[1]
    places = jnp.arange(length)
    changes = segments[:, 1:] != segments[:, :-1]
    ends_here = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    begins_here = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    starts = jax.lax.cummax(jnp.where(begins_here, places, 0), axis=1)
    ends = jax.lax.cummin(jnp.where(ends_here, places + 1, length), axis=1, reverse=True)
    seen = (starts[..., None] <= places) & (places <= places[:, None])
    return Texts(places - starts, ends - starts, seen)
