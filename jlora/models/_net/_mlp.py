"""The layer's MLP: gated or plain."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._laid_out import MODEL, rows_laid_out
from jlora.models._net._remat import product
from jlora.models._net._sparse_gate import Sparsity, largest

ACTIVATION: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, arXiv 2109.08668
}


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202), or down(act(up(x)))."""

    config: DecoderConfig
    width: int | None = None  # between the two; None: the family's mlp_width

    @nn.compact
    def __call__(self, x: jax.Array, sparsity: Sparsity | None = None) -> jax.Array:
        config, act = self.config, ACTIVATION[self.config.activation]
        width = self.width or config.mlp_width

        def dense(name: str, features: int) -> nn.Dense:
            return nn.Dense(features, use_bias=config.mlp_bias, name=f"{name}_proj")

        if not config.gated:
            hidden = act(product(dense("up", width)(x)))
        elif config.fused_gate_up:
            both = product(dense("gate_up", 2 * width)(x))
            gate, up = jnp.split(both, 2, axis=-1)
            hidden = act(_kept(gate, sparsity)) * up
        else:
            gate = product(dense("gate", width)(x))
            hidden = act(_kept(gate, sparsity)) * product(dense("up", width)(x))
        hidden = rows_laid_out(hidden, MODEL)
        return rows_laid_out(product(dense("down", config.width)(hidden)))


def _kept(gate: jax.Array, sparsity: Sparsity | None) -> jax.Array:
    return gate if sparsity is None else largest(gate, sparsity)
