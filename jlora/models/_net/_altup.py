"""Hidden states side by side, of which each layer computes one and predicts the others: AltUp.

Baykal et al. 2023, "Alternating Updates for Efficient Transformers", arXiv 2301.13310.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._norms import norm
from jlora.models._net._remat import product

_LEAST = 1e-5  # of a mean square by which is divided


class AltUp(nn.Module):
    """What all streams, (streams, batch, length, width), become in a layer that computes the first.

    Each stream is predicted as itself and a mixture of all, and corrected by a share of how far the
    first one's prediction is from what the layer made of it. Both depend on the token.
    """

    config: DecoderConfig
    streams: int

    def setup(self) -> None:
        def dense(features: int) -> nn.Dense:
            return nn.Dense(features, use_bias=False)

        self.router_norm = norm(self.config)
        self.router = dense(self.streams)
        self.prediction = dense(self.streams**2)
        self.correction = dense(self.streams)

    def predicted(self, streams: jax.Array) -> jax.Array:
        """The streams as the layer would leave them, by their first alone."""
        shares = product(self.prediction(self._routed(streams[0])))
        shares = shares.reshape(*shares.shape[:-1], self.streams, self.streams)
        return streams + jnp.einsum("btij,jbtd->ibtd", shares, streams)

    def corrected(self, predicted: jax.Array, computed: jax.Array) -> jax.Array:
        """The streams, by what the layer has computed of the first, (batch, length, width)."""
        shares = 1 + product(self.correction(self._routed(computed)))
        return predicted + jnp.einsum("bti,btd->ibtd", shares, computed - predicted[0])

    def _routed(self, x: jax.Array) -> jax.Array:
        scores = product(self.router(self.router_norm(x) / x.shape[-1]))
        return jnp.tanh(scores.astype(jnp.float32)).astype(x.dtype)


def spread(x: jax.Array, to_others: list[nn.Dense]) -> jax.Array:
    """The streams before the first layer: the embedding, and a product of it for each other one."""
    others = [_as_large_as(x, product(dense(x))) for dense in to_others]
    return jnp.stack([x, *others])


def gathered(streams: jax.Array, from_others: list[nn.Dense]) -> jax.Array:
    """The mean of the streams after the last layer, of all but the first a product each."""
    first, *others = streams
    products = [product(dense(x)) for dense, x in zip(from_others, others, strict=True)]
    return jnp.stack([first, *(_as_large_as(first, x) for x in products)]).mean(axis=0)


def _as_large_as(x: jax.Array, other: jax.Array) -> jax.Array:
    """The other with the root mean square of x, both in float32 till the end."""
    wide = other.astype(jnp.float32)
    size = _root_mean_square(x.astype(jnp.float32), float(jnp.finfo(jnp.float32).tiny))
    return (wide * (size / _root_mean_square(wide, _LEAST))).astype(x.dtype)


def _root_mean_square(x: jax.Array, least: float) -> jax.Array:
    """With a gradient of zero where all of x is."""
    return jnp.sqrt(jnp.maximum(jnp.mean(x * x, axis=-1, keepdims=True), least))
