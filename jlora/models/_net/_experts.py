"""A mixture of experts: each token goes to a few gated MLPs, rows sorted by expert."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._laid_out import by_rows
from jlora.models._net._mlp import ACTIVATION, MLP
from jlora.models._net._part_configs import ClampedGate, Experts
from jlora.models._net._remat import product
from jlora.models._net._routing import choose


class Grouped(nn.Module):
    """The weights of all experts, and biases where there are some; `grouped` computes with them."""

    count: int
    inputs: int
    features: int
    biased: bool

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
        kernel = self.param("kernel", init, (self.count, self.inputs, self.features))
        if not self.biased:
            return kernel, None
        zeros = nn.initializers.zeros_init()
        return kernel, self.param("bias", zeros, (self.count, self.features))


class GatedExperts(nn.Module):
    """The weights of down(act(gate(x)) * up(x)) of all experts, gate and up in one."""

    config: DecoderConfig
    experts: Experts

    @nn.compact
    def __call__(self) -> tuple[Any, Any]:
        experts, width = self.experts, self.config.width
        both = Grouped(experts.count, width, 2 * experts.width, experts.biases, name="gate_up_proj")
        down = Grouped(experts.count, experts.width, width, experts.biases, name="down_proj")
        return both(), down()


def grouped(
    x: jax.Array, weights: tuple[jax.Array, jax.Array | None], sizes: jax.Array, whose: Any
) -> jax.Array:
    """x W of each row's own expert; rows stand sorted by expert, ``sizes`` rows for each.

    ``whose`` is each row's expert, where there are biases.
    """
    kernel, bias = weights
    out = product(jax.lax.ragged_dot(x, kernel.astype(x.dtype), sizes))
    return out if bias is None else out + bias.astype(x.dtype)[whose]


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
        weights = correction, *GatedExperts(self.config, experts, name="experts")()
        # each device sorts the rows that it has
        run = functools.partial(mixed, self.config, experts)
        out = by_rows(run, [x, scores.reshape(*x.shape[:-1], -1)], weights).reshape(tokens.shape)
        if experts.shared_width is not None:
            out = out + self._shared(tokens)
        return out.reshape(x.shape)

    def _shared(self, tokens: jax.Array) -> jax.Array:
        out = MLP(self.config, self.experts.shared_width, name="shared")(tokens)
        if not self.experts.shared_gated:
            return out
        gate = product(nn.Dense(1, use_bias=False, name="shared_gate")(tokens))
        return jax.nn.sigmoid(gate) * out


def mixed(
    config: DecoderConfig, experts: Experts, x: jax.Array, scores: jax.Array, weights: Any
) -> jax.Array:
    """The sum of what the chosen experts make of each token, weighted by their shares.

    Args:
        config: of the model.
        experts: its rule.
        x: (..., width).
        scores: (..., experts) float32, the router's.
        weights: what corrects the choice, if something does, and what `GatedExperts` holds.
    """
    shape, (correction, both, down) = x.shape, weights
    tokens, scores = (each.reshape(-1, each.shape[-1]) for each in (x, scores))
    shares, chosen = choose(experts, scores, correction)
    order = jnp.argsort(chosen.reshape(-1))
    whose = chosen.reshape(-1)[order] if experts.biases else None
    sizes = jnp.bincount(chosen.reshape(-1), length=experts.count)
    sorted_rows = tokens[order // experts.chosen]
    if experts.weighted_input:
        sorted_rows = sorted_rows * shares.astype(x.dtype).reshape(-1, 1)[order]
    hidden = _gated(config, experts, grouped(sorted_rows, both, sizes, whose))
    out = grouped(hidden, down, sizes, whose)
    out = out[jnp.argsort(order)].reshape(*chosen.shape, -1)
    if experts.weighted_input:
        return out.sum(axis=1).reshape(shape)
    return jnp.einsum("tk,tkd->td", shares.astype(x.dtype), out).reshape(shape)


def _gated(config: DecoderConfig, experts: Experts, both: jax.Array) -> jax.Array:
    if experts.interleaved:
        gate, up = both[..., ::2], both[..., 1::2]
    else:
        gate, up = jnp.split(both, 2, axis=-1)
    if experts.clamped is not None:
        return clamped(gate, up, experts.clamped)
    return ACTIVATION[config.activation](gate) * up
