"""The layer's MLP: gated or plain."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._saved_for_gradient import product

ACTIVATION: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202), or down(act(up(x)))."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, act = self.config, ACTIVATION[self.config.activation]

        def dense(name: str, features: int) -> nn.Dense:
            return nn.Dense(features, use_bias=config.mlp_bias, name=f"{name}_proj")

        if not config.gated:
            hidden = act(product(dense("up", config.mlp_width)(x)))
        elif config.fused:
            both = product(dense("gate_up", 2 * config.mlp_width)(x))
            gate, up = jnp.split(both, 2, axis=-1)
            hidden = act(gate) * up
        else:
            gate = product(dense("gate", config.mlp_width)(x))
            hidden = act(gate) * product(dense("up", config.mlp_width)(x))
        return product(dense("down", config.width)(hidden))
