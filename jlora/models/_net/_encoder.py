"""The encoder in Flax linen: every token sees all others, and norms stand behind what is added.

Layers are stacked along a first dimension and scanned, as the decoder's are.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jlora.models._net._encoder_config import EncoderConfig
from jlora.models._net._laid_out import MODEL, REPLICAS, ROWS, WIDTH, laid_out, rows_laid_out
from jlora.models._net._mlp import ACTIVATION
from jlora.models._net._remat import product, rematerialised


def _norm(config: EncoderConfig, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450); its statistics are float32."""
    return nn.LayerNorm(config.norm_epsilon, use_fast_variance=False, name=name)


def _looked_up(table: nn.Embed, numbers: jax.Array) -> jax.Array:
    """(rows, length, width) out of a table that may be cut along its width; rows cut alone."""
    return rows_laid_out(laid_out(table(numbers), REPLICAS, None, WIDTH))


class Attention(nn.Module):
    """Each token's mean of the values of all that ``seen`` (batch, length) lets it see."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        config = self.config

        def heads(name: str) -> jax.Array:  # (batch, length, heads, head_dim)
            out = product(nn.Dense(config.width, name=name)(x))
            out = out.reshape(*x.shape[:2], config.heads, config.head_dim)
            return laid_out(out, ROWS, None, MODEL, None)

        query, key, value = heads("q_proj"), heads("k_proj"), heads("v_proj")
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * config.head_dim**-0.5
        scores = jnp.where(seen[:, None, None], scores.astype(jnp.float32), -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return rows_laid_out(product(nn.Dense(config.width, name="o_proj")(mixed)))


class MLP(nn.Module):
    """down(act(up(x)))."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = product(nn.Dense(self.config.mlp_width, name="up_proj")(x))
        hidden = rows_laid_out(ACTIVATION[self.config.activation](wide), MODEL)
        return product(nn.Dense(self.config.width, name="down_proj")(hidden))


class Layer(nn.Module):
    """norm(x + attention(x)), and of that norm(x + mlp(x))."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x, seen):
        x = _norm(self.config, "attn_norm")(x + Attention(self.config, name="attn")(x, seen))
        x = _norm(self.config, "mlp_norm")(x + MLP(self.config, name="mlp")(x))
        return rows_laid_out(x), None


class Classifier(nn.Module):
    """Scores of the labels; with ``own_dense`` of tanh(x W + b)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.config.own_dense:
            x = jnp.tanh(nn.Dense(self.config.width, name="dense")(x))
        return nn.Dense(len(self.config.labels), name="out_proj")(x)


class Encoder(nn.Module):
    """An encoder; parameters as ``{"embed", "positions", "types", "embed_norm", "layers", ...}``.

    ``pooler`` and ``classifier`` beside them where the configuration has them. ``remat`` says what
    each layer keeps for its gradient, as in `answer_loss`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> config = models.EncoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, mlp_width=8, max_length=64,
        ... )
        >>> encoder, tokens = models.Encoder(config), jnp.array([[1, 2, 1]])
        >>> variables = jax.jit(encoder.init)(jax.random.key(0), tokens)
        >>> encoder.apply(variables, tokens).shape  # (batch, length, width), without a head
        (1, 3, 8)
    """

    config: EncoderConfig
    remat: str = "products"

    def setup(self) -> None:
        config = self.config
        self.embed = nn.Embed(config.vocabulary, config.width)
        self.positions = nn.Embed(config.max_length, config.width)
        self.types = nn.Embed(config.types, config.width)
        self.embed_norm = _norm(config)
        self.layers = nn.scan(
            rematerialised(Layer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore
            length=config.layers,
        )(config)
        if config.pooler:
            self.pooler = nn.Dense(config.width)
        if config.labels:
            self.classifier = Classifier(config)

    def __call__(
        self, tokens: jax.Array, mask: jax.Array | None = None, types: jax.Array | None = None
    ) -> jax.Array:
        hidden = self.hidden(tokens, mask, types)
        if self.config.pooler and self.is_initializing():
            self.pooled(hidden)
        return self.scores(hidden) if self.config.labels else hidden

    def hidden(
        self, tokens: jax.Array, mask: jax.Array | None = None, types: jax.Array | None = None
    ) -> jax.Array:
        """The last layer's output, (batch, length, width).

        Args:
            tokens: (batch, length) int32.
            mask: (batch, length), which tokens are seen; all without it.
            types: (batch, length) int32, whether of the first text or of the second; 0 without it.

        Raises:
            ValueError: when there are more tokens than learned positions.
        """
        config = self.config
        if tokens.shape[1] > config.longest:
            raise ValueError(
                f"{tokens.shape[1]} tokens are longer than the {config.longest} positions that the "
                "model has learned: shorten them"
            )
        # a model that knows one type alone reads every token as of it, as transformers does
        types = jnp.zeros_like(tokens) if types is None or config.types == 1 else types
        x = _looked_up(self.embed, tokens) + _looked_up(self.types, types)
        x = x + _looked_up(self.positions, self._positions(tokens))
        seen = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
        return self.layers(self.embed_norm(x), seen)[0]

    def pooled(self, hidden: jax.Array) -> jax.Array:
        """(batch, width): tanh(x W + b) of each first token's output."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def scores(self, hidden: jax.Array) -> jax.Array:
        """The labels' scores, (batch, labels) float32."""
        read = hidden[:, 0] if self.config.own_dense else self.pooled(hidden)
        return self.classifier(read).astype(jnp.float32)

    def _positions(self, tokens: jax.Array) -> jax.Array:
        if (padding := self.config.padding) is None:
            return jnp.arange(tokens.shape[1])[None]
        counted = (tokens != padding).astype(jnp.int32)
        return jnp.cumsum(counted, axis=1) * counted + padding
