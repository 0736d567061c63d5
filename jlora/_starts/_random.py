"""Starts that need no weight: A random, and A B zero."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jlora._starts._start import Matrices


def kaiming(leaf: Matrices) -> tuple[jax.Array, jax.Array]:
    """A uniform within ±1/sqrt(inputs), B zero (He et al. 2015, arXiv 1502.01852; PEFT's start)."""
    bound = leaf.inputs**-0.5
    shape = (*leaf.stack, leaf.inputs, leaf.rank)
    return jax.random.uniform(leaf.key, shape, jnp.float32, -bound, bound), _zeros(leaf)


def gaussian(leaf: Matrices) -> tuple[jax.Array, jax.Array]:
    """A normal with deviation 1 / rank, B zero (Hu et al. 2021, section 4.1)."""
    shape = (*leaf.stack, leaf.inputs, leaf.rank)
    return drawn(leaf.key, shape, leaf.dtype) / leaf.rank, _zeros(leaf)


def orthogonal(leaf: Matrices) -> tuple[jax.Array, jax.Array]:
    """A and B both random, in halves of the rank that are orthogonal: A B is zero but for rounding.

    With Q a random orthogonal matrix of the rank's size: A = N Q_odd / 10 and B = Q_even' N' / 10,
    the odd and the even rows of Q. The rank must be even. (After D. Bhardwaj 2024, "Rethinking LoRA
    initialisation", the start that PEFT calls orthogonal.)
    """
    of_q, of_a, of_b = jax.random.split(leaf.key, 3)
    q, _ = jnp.linalg.qr(drawn(of_q, (*leaf.stack, leaf.rank, leaf.rank), leaf.dtype))
    half = leaf.rank // 2
    a = drawn(of_a, (*leaf.stack, leaf.inputs, half), leaf.dtype) / 10
    b = drawn(of_b, (*leaf.stack, half, leaf.outputs), leaf.dtype) / 10
    odd, even = q[..., 0::2, :], q[..., 1::2, :]
    return a @ odd, jnp.swapaxes(even, -1, -2) @ b


def drawn(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Normal numbers, the same whether JAX may use float64 or not, in this dtype."""
    return jax.random.normal(key, shape, jnp.float32).astype(dtype)


def _zeros(leaf: Matrices) -> jax.Array:
    return jnp.zeros((*leaf.stack, leaf.rank, leaf.outputs), jnp.float32)
