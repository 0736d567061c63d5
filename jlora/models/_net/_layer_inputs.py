"""What each layer gets of the tokens themselves: a short vector by which its output is changed.

As Gemma 3n has it (Google 2025), where it is called per-layer embeddings.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._mlp import ACTIVATION
from jlora.models._net._norms import norm
from jlora.models._net._part_configs import LayerInputs
from jlora.models._net._remat import product


class InputsOfLayers(nn.Module):
    """(layers, batch, length, width of one layer's vector).

    The half of each is looked up by the token, the other is a product of its embedding.
    """

    config: DecoderConfig
    inputs: LayerInputs

    @nn.compact
    def __call__(self, tokens: jax.Array, embedded: jax.Array) -> jax.Array:
        config, inputs = self.config, self.inputs
        features = config.layers * inputs.width
        known = jnp.where(tokens < inputs.vocabulary, tokens, 0)
        own = nn.Embed(inputs.vocabulary, features, name="embed")(known)
        own = own * jnp.asarray(math.sqrt(inputs.width), own.dtype)
        made = product(nn.Dense(features, use_bias=False, name="proj")(embedded))
        made = made * jnp.asarray(config.width**-0.5, made.dtype)
        own, made = (each.reshape(*tokens.shape, config.layers, -1) for each in (own, made))
        both = norm(config, "norm")(made) + own
        return (both * jnp.asarray(math.sqrt(0.5), both.dtype)).transpose(2, 0, 1, 3)


class LayerInput(nn.Module):
    """norm(out(act(gate(scale * x)) * input)), which is added to what the layer gives."""

    config: DecoderConfig
    scaled: bool  # by a factor for each dimension of x

    @nn.compact
    def __call__(self, x: jax.Array, given: jax.Array) -> jax.Array:
        config = self.config
        if self.scaled:
            zeros = nn.initializers.zeros_init()
            x = x * self.param("scale", zeros, (x.shape[-1],)).astype(x.dtype)
        gate = product(nn.Dense(given.shape[-1], use_bias=False, name="gate_proj")(x))
        hidden = ACTIVATION[config.activation](gate) * given
        out = product(nn.Dense(config.width, use_bias=False, name="out_proj")(hidden))
        return norm(config, "norm")(out)
