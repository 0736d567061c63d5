"""Starts that take the strongest part of the weight into the adapter."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jlora._starts._random import drawn
from jlora._starts._start import Matrices


def pissa(leaf: Matrices, *, iterations: int | None = None) -> tuple[jax.Array, jax.Array]:
    """The first singular vectors (Meng et al. 2024, arXiv 2404.02948, eq. 2 to 4).

    With W = U S V': A = U sqrt(S / scaling) and B = sqrt(S / scaling) V', of the first ``rank``.

    Args:
        leaf: the weight.
        iterations: of a randomised decomposition (`strongest`) in place of the exact one.
    """

    def decomposed(weight, scaling, key):
        u, s, vt = strongest(weight, leaf.rank, key, iterations)
        root = jnp.sqrt(s / scaling)
        return u * root[None], root[:, None] * vt

    return _each(leaf, decomposed)


def olora(leaf: Matrices) -> tuple[jax.Array, jax.Array]:
    """The first columns of Q and rows of R, with W' = Q R (Büyükakyüz 2024, arXiv 2406.01775).

    The paper's W is (out, in): its B is Q, and its A is R.
    """

    def decomposed(weight, scaling, key):
        q, r = jnp.linalg.qr(weight.T)
        return r[: leaf.rank].T, q[:, : leaf.rank].T

    return _each(leaf, decomposed)


def from_data(leaf: Matrices) -> tuple[jax.Array, jax.Array]:
    """None: `jlora.lora_ga` makes this start, out of batches that a split does not have."""
    raise ValueError("init is 'lora_ga': split with another one, then call jlora.lora_ga")


def strongest(
    matrix: jax.Array, rank: int, key: jax.Array, iterations: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U (m, rank), S (rank,), V' (rank, n): exact, or by so many subspace iterations.

    The iterations work on ``rank + 8`` random directions (Halko et al. 2011, arXiv 0909.4061,
    algorithms 4.4 and 5.1).
    """
    if iterations is not None:
        width = min(rank + 8, *matrix.shape)
        directions = drawn(key, (matrix.shape[1], width), matrix.dtype)
        q, _ = jnp.linalg.qr(matrix @ directions)
        for _ in range(iterations):
            q, _ = jnp.linalg.qr(matrix.T @ q)
            q, _ = jnp.linalg.qr(matrix @ q)
        u, s, vt = jnp.linalg.svd(q.T @ matrix, full_matrices=False)
        u = q @ u
    else:
        u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank], vt[:rank]


def _each(leaf: Matrices, of: Callable[..., tuple[jax.Array, jax.Array]]):
    """The start of each matrix of the stack, one after the other: a decomposition needs room."""
    count = leaf.weight.size // (leaf.inputs * leaf.outputs)
    flat = (
        leaf.weight.reshape(count, leaf.inputs, leaf.outputs),
        leaf.scaling.reshape(count, leaf.rank),
        jax.random.split(leaf.key, count),
    )
    a, b = lax.map(lambda each: of(*each), flat)
    return a.reshape(*leaf.stack, *a.shape[1:]), b.reshape(*leaf.stack, *b.shape[1:])
