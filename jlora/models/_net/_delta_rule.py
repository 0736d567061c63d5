"""The gated delta rule: what a matrix remembers of a text, read by each token's query.

"Gated Delta Networks" (Yang et al. 2024, arXiv 2412.06464), in chunks as section 3.3 has it: within
a chunk by products of matrices, from chunk to chunk by a scan.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_CHUNK = 64  # tokens


def gated_delta_rule(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    decay: jax.Array,
    strength: jax.Array,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What each query reads, (batch, length, heads, value_dim) float32, and the state behind them.

    For each token S <- exp(decay) S, then S <- S + strength k (v - S^T k)^T, and S^T q is read.

    Args:
        query: (batch, length, heads, key_dim).
        key: as the queries.
        value: (batch, length, heads, value_dim).
        decay: (batch, length, heads), at most 0.
        strength: (batch, length, heads), from 0 to 1.
        state: S, (batch, heads, key_dim, value_dim) float32.
    """
    length = query.shape[1]
    size = max(1, min(_CHUNK, length))
    # A token of zeros behind the last changes nothing.
    query, key, value, decay, strength = (
        _chunks(x, size) for x in (query, key, value, decay, strength)
    )
    strength = strength[..., None]
    total = jnp.cumsum(decay, axis=-1)  # since the chunk began
    earlier = jnp.tril(jnp.ones((size, size), bool))
    between = total[..., :, None] - total[..., None, :]
    kept = jnp.exp(jnp.where(earlier, between, -jnp.inf))  # of what a token wrote, at another
    since_start, to_end = jnp.exp(total)[..., None], jnp.exp(total[..., -1:] - total)[..., None]

    # What a token writes is u = strength (v - S^T k), of which S holds what those before it wrote.
    overlap = jnp.tril(strength * (key @ key.swapaxes(-1, -2)) * kept, -1)
    both = jnp.concatenate([strength * value, strength * since_start * key], axis=-1)
    both = _product(_inverse(overlap), both)
    written, foreseen = jnp.split(both, [value.shape[-1]], axis=-1)
    within = query @ key.swapaxes(-1, -2) * kept

    def step(state, chunk):
        written, foreseen, within, query, key, ends = chunk
        written = written - foreseen @ state
        read = query @ state + within @ written
        return ends * state + key.swapaxes(-1, -2) @ written, read

    ends = jnp.exp(total[..., -1])[..., None, None]
    chunks = (written, foreseen, within, since_start * query, to_end * key, ends)
    state, read = jax.lax.scan(step, state, chunks)
    read = read.transpose(1, 0, 3, 2, 4)  # (batch, chunks, size, heads, value_dim)
    return read.reshape(read.shape[0], -1, *read.shape[3:])[:, :length], state


def _inverse(below: jax.Array) -> jax.Array:
    """(I + L)^-1 of (..., size, size), of which L is what stands below the diagonal.

    By halves: [[A, 0], [C, D]]^-1 = [[A^-1, 0], [-D^-1 C A^-1, D^-1]]. The series I - L + L^2 -
    ... ends as well, but where keys are alike its terms are 1e17 and more. Two of LAPACK's solves
    of many matrices at once can stop for good on a CPU of few cores.
    """
    size = below.shape[-1]
    if size == 1:
        return jnp.ones_like(below)
    if size % 2:
        one_more = [(0, 0)] * (below.ndim - 2) + [(0, 1)] * 2
        return _inverse(jnp.pad(below, one_more))[..., :-1, :-1]
    half = size // 2
    first, last = _inverse(jnp.stack([below[..., :half, :half], below[..., half:, half:]]))
    corner = -_product(_product(last, below[..., half:, :half]), first)
    return jnp.block([[first, jnp.zeros_like(corner)], [corner, last]])


# In full float32: what is rounded here comes back in all later tokens.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _chunks(x: jax.Array, size: int) -> jax.Array:
    """(batch, length, heads, ...) as (chunks, batch, heads, size, ...) in float32."""
    behind = -x.shape[1] % size
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, behind), *((0, 0),) * (x.ndim - 2)))
    x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
    return jnp.moveaxis(x, (1, 3), (0, 2))
