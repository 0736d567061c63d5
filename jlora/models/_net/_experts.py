"""A mixture of experts: each token goes to a few gated MLPs, rows sorted by expert."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import ClampedGate, DecoderConfig, Experts
from jlora.models._net._mlp import ACTIVATION, MLP
from jlora.models._net._remat import product
from jlora.models._net._routing import choose


class Grouped(nn.Module):
    """x W of each row's own expert; rows stand sorted by expert, ``sizes`` rows for each.

    ``whose`` is each row's expert, where there are biases.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, sizes: jax.Array, whose: jax.Array | None) -> jax.Array:
        init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
        shape = (sizes.shape[0], x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape).astype(x.dtype)
        out = product(jax.lax.ragged_dot(x, kernel, sizes))
        if whose is None:
            return out
        zeros = nn.initializers.zeros_init()
        bias = self.param("bias", zeros, (sizes.shape[0], self.features)).astype(x.dtype)
        return out + bias[whose]


class GatedExperts(nn.Module):
    """down(act(gate(x)) * up(x)) of each row's own expert, gate and up in one product."""

    config: DecoderConfig
    experts: Experts

    @nn.compact
    def __call__(self, x: jax.Array, sizes: jax.Array, whose: jax.Array | None) -> jax.Array:
        experts = self.experts
        both = Grouped(2 * experts.width, name="gate_up_proj")(x, sizes, whose)
        if experts.interleaved:
            gate, up = both[..., ::2], both[..., 1::2]
        else:
            gate, up = jnp.split(both, 2, axis=-1)
        if experts.clamped is None:
            hidden = ACTIVATION[self.config.activation](gate) * up
        else:
            hidden = clamped(gate, up, experts.clamped)
        return Grouped(self.config.width, name="down_proj")(hidden, sizes, whose)


def clamped(gate: jax.Array, up: jax.Array, by: ClampedGate) -> jax.Array:
    """gate * sigmoid(sharpness * gate) * (up + 1), gate held from above, up from both sides."""
    gate, up = jnp.minimum(gate, by.limit), jnp.clip(up, -by.limit, by.limit)
    return gate * jax.nn.sigmoid(by.sharpness * gate) * (up + 1)


class Mixture(nn.Module):
    """The weighted sum of the experts that the router chooses (Shazeer et al. 2017, 1701.06538).

    Each expert computes its own tokens and no others: no token is dropped, none is padded. There
    may be one more expert, to which all tokens go (Dai et al. 2024, arXiv 2401.06066).
    """

    config: DecoderConfig
    experts: Experts

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        experts = self.experts
        tokens = x.reshape(-1, x.shape[-1])
        dtype = jnp.float32 if experts.wide_router else None
        router = nn.Dense(experts.count, use_bias=experts.biases, dtype=dtype, name="router")
        scores = product(router(tokens)).astype(jnp.float32)
        correction = None
        if experts.corrected:
            zeros = nn.initializers.zeros_init()
            correction = self.param("router_correction", zeros, (experts.count,))
        shares, chosen = choose(experts, scores, correction)
        order = jnp.argsort(chosen.reshape(-1))
        whose = chosen.reshape(-1)[order] if experts.biases else None
        sizes = jnp.bincount(chosen.reshape(-1), length=experts.count)
        sorted_rows = tokens[order // experts.chosen]
        if experts.weighted_input:
            sorted_rows = sorted_rows * shares.astype(x.dtype).reshape(-1, 1)[order]
        out = GatedExperts(self.config, experts, name="experts")(sorted_rows, sizes, whose)
        out = out[jnp.argsort(order)].reshape(*chosen.shape, -1)
        if experts.weighted_input:
            out = out.sum(axis=1)
        else:
            out = jnp.einsum("tk,tkd->td", shares.astype(x.dtype), out)
        if experts.shared_width is not None:
            out = out + self._shared(tokens)
        return out.reshape(x.shape)

    def _shared(self, tokens: jax.Array) -> jax.Array:
        out = MLP(self.config, self.experts.shared_width, name="shared")(tokens)
        if not self.experts.shared_gated:
            return out
        gate = product(nn.Dense(1, use_bias=False, name="shared_gate")(tokens))
        return jax.nn.sigmoid(gate) * out
