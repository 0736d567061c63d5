"""The decoder in Flax linen: init and apply are pure functions over a plain tree of parameters.

Like layers are stacked along a first dimension and scanned, so that a deep model compiles as fast
as a shallow one.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jlora.models._net._altup import AltUp, gathered, spread
from jlora.models._net._attention import Attention, capped
from jlora.models._net._borrowing import BORROWED, LENT, OWN, Keys
from jlora.models._net._config import DecoderConfig
from jlora.models._net._experts import Mixture
from jlora.models._net._laid_out import ANY, MODEL, REPLICAS, ROWS, WIDTH, laid_out
from jlora.models._net._laurel import Laurel
from jlora.models._net._layer_differences import of_layer, prepare
from jlora.models._net._layer_inputs import InputsOfLayers, LayerInput
from jlora.models._net._linear_attention import LinearAttention, empty_state
from jlora.models._net._mlp import MLP
from jlora.models._net._norms import norm
from jlora.models._net._remat import rematerialised
from jlora.models._net._stacks import Stack, runs, stacks
from jlora.models._net._texts import texts_of

# Keys (layers, batch, slots, kv_heads, head_dim) and values, the same of value_dim, or what linear
# attention keeps; of several stacks a tuple of such pairs, empty where keys are borrowed.
Cache = tuple[Any, ...]


class Block(nn.Module):
    """One layer: attention and MLP, each on its normed input and added to it.

    ``parallel``: both on the same input (Wang and Komatsuzaki 2021). Of several streams it computes
    the first.
    """

    config: DecoderConfig
    attention: str = "blocks"
    keys: Keys = OWN

    @nn.compact
    def __call__(self, x, shared, own, cache, slot):
        config, altup, predicted = self.config, None, x
        layer = of_layer(shared, own)
        if config.streams is not None:
            altup = AltUp(config, config.streams, name="altup")
            predicted = altup.predicted(x)
            x = predicted[0]
        normed = norm(config, "attn_norm")(x) if config.pre_norms else x
        if config.linear is None:
            attend = Attention(config, self.attention, self.keys, name="attn")
            mixed, cache = attend(normed, layer, cache, slot)
        else:
            attend = LinearAttention(config, config.linear, name="linear_attn")
            mixed, kept = attend(normed, layer.real, cache)
            cache = None if cache is None else kept
        x = x + self._given("attn_post_norm", mixed)
        if config.laurel_rank is not None:
            beside = Laurel(config, config.laurel_rank, name="laurel")(normed)
            x = (x + beside) * jnp.asarray(math.sqrt(0.5), x.dtype)
        if not config.parallel:
            normed = norm(config, "mlp_norm")(x) if config.pre_norms else x
        if config.experts is None:
            mixed = MLP(config, name="mlp")(normed, layer.sparsity)
        else:
            mixed = Mixture(config, config.experts, name="mlp")(normed)
        x = x + self._given("mlp_post_norm", mixed)
        x = x if altup is None else altup.corrected(predicted, x)
        x = x if layer.given is None else self._with_input(x, layer.given)
        return _kept(x), cache

    def _with_input(self, x: jax.Array, given: jax.Array) -> jax.Array:
        """Of several streams the first says what is added to the others."""
        several = self.config.streams is not None
        change = LayerInput(self.config, scaled=several, name="layer_input")
        if not several:
            return x + change(x, given)
        return jnp.concatenate([x[:1], x[1:] + change(x[0], given)])

    def _given(self, name: str, mixed: jax.Array) -> jax.Array:
        """What attention or MLP gives, as it is added."""
        if self.config.post_norms:
            mixed = norm(self.config, name)(mixed)
        return mixed if (scale := self.config.residual_scale) == 1.0 else mixed * scale


def _kept(x: jax.Array) -> jax.Array:
    """What goes from layer to layer, (batch, length, width) or several of it: rows cut alone."""
    return laid_out(x, *[None] * (x.ndim - 3), ROWS, None, None)


def _scanned(of: type[nn.Module], times: int) -> type[nn.Module]:
    """So many of them, one behind the other."""
    return nn.scan(
        of,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0, 0, nn.broadcast),  # pyright: ignore
        length=times,
    )


class Period(nn.Module):
    """Layers of several stacks, one of each, one behind the other."""

    blocks: tuple[nn.Module, ...]

    def __call__(self, x, shared, own, cache, slot):
        caches = []
        for at, block in enumerate(self.blocks):
            x, kept = block(x, shared, own[at], None if cache is None else cache[at], slot)
            caches.append(kept)
        return x, tuple(caches)


class Stacks(nn.Module):
    """Several stacks of layers; called as one alone is."""

    config: DecoderConfig
    remat: str
    attention: str

    @nn.compact
    def __call__(self, x, shared, own, cache, slot):
        block, caches, lent = rematerialised(Block, self.remat), [], {}
        for run in runs(self.config):
            if run[0].keys == BORROWED:
                shared = shared._replace(lent=_joined(lent))
            times = len(run[0].layers)
            its = tuple(_of_layers(own, stack.layers) for stack in run)
            held = None if cache is None else cache[len(caches) :][: len(run)]
            if len(run) == 1:
                layer = _scanned(block, times)
                layers = layer(run[0].config, self.attention, run[0].keys, name=run[0].name)
                x, kept = layers(x, shared, its[0], held and held[0], slot)
                kept = (kept,)
            else:
                turns = [
                    block(stack.config, self.attention, stack.keys, name=stack.name)
                    for stack in run
                ]
                x, kept = _scanned(Period, times)(tuple(turns))(x, shared, its, held, slot)
            caches += kept
            for stack, its_own in zip(run, kept, strict=True):
                lent |= {stack.layers: its_own} if stack.keys == LENT else {}
        return x, None if cache is None else tuple(caches)


def _joined(lent: dict[range, Any]) -> Any:
    """Keys and values of all layers that lend theirs, in the order of the layers."""
    if len(lent) == 1:
        return next(iter(lent.values()))
    order = np.argsort([layer for layers in lent for layer in layers])
    joined = jax.tree.map(lambda *each: jnp.concatenate(each), *lent.values())
    if (order[:-1] < order[1:]).all():
        return joined
    return jax.tree.map(lambda each: each[order], joined)


def _of_layers(own: Any, layers: range) -> Any:
    return jax.tree.map(lambda each: each[layers.start : layers.stop : layers.step], own)


class Decoder(nn.Module):
    """A decoder-only transformer; parameters as ``{"embed", "layers", "norm", ...}``.

    ``head`` beside them unless the embedding is the head, ``positions`` where they are learned,
    ``classifier`` in the place of ``head`` where there are labels. ``remat`` says what each layer
    keeps for its gradient, as in `answer_loss`; ``attention`` is blocks, xla or cudnn, as `load`
    describes them.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> decoder, tokens = models.Decoder(config), jnp.array([[1, 2, 1]])
        >>> variables = jax.jit(decoder.init)(jax.random.key(0), tokens)
        >>> decoder.apply(variables, tokens).shape  # (batch, length, vocabulary)
        (1, 3, 3)
    """

    config: DecoderConfig
    remat: str = "products"
    attention: str = "blocks"

    def setup(self) -> None:
        config = self.config
        self.embed = nn.Embed(config.vocabulary, config.width)
        if config.learned_positions:
            self.positions = nn.Embed(config.max_length, config.width)
        if len(stacks(config)) == 1:
            self.layers = _scanned(rematerialised(Block, self.remat), config.layers)(
                config, self.attention
            )
        else:
            self.layers = Stacks(config, self.remat, self.attention)
        if config.layer_inputs is not None:
            self.layer_inputs = InputsOfLayers(config, config.layer_inputs)
        if config.streams is not None:
            self.to_stream, self.from_stream = (
                [nn.Dense(config.width, use_bias=False) for _ in range(config.streams - 1)]
                for _ in range(2)
            )
        self.norm = norm(config)
        if config.labels:
            self.classifier = nn.Dense(len(config.labels), use_bias=False)
        elif not config.tied:
            self.head = nn.Dense(config.vocabulary, use_bias=False)

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        hidden = self.hidden(tokens, segments)
        return self.logits(_last(hidden, mask) if self.config.labels else hidden)

    def hidden(self, tokens: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """The last layer's normed output, (batch, length, width), for tokens from position 0 on.

        Args:
            tokens: (batch, length) int32.
            segments: (batch, length) int32, where texts share a sequence: each is what it would be
                alone. One begins wherever the number changes.

        Raises:
            ValueError: when there are more tokens than learned positions, or segments, and an
                attention that does not keep them apart, as a linear one.
        """
        length = tokens.shape[1]
        if self.config.learned_positions and length > self.config.max_length:
            raise ValueError(
                f"{length} tokens are longer than the {self.config.max_length} positions that the "
                "model has learned: shorten them"
            )
        if segments is None:
            causal = jnp.tril(jnp.ones((length, length), bool))[None]
            return self._run(tokens, jnp.arange(length)[None], causal, None, None)[0]
        if self.attention != "blocks":
            raise ValueError(
                f"attention={self.attention!r} does not keep the texts of a packed sequence apart: "
                "use attention='blocks', or do not pack"
            )
        if self.config.linear is not None:
            raise ValueError(
                "linear attention carries its state from one text of a packed sequence to the "
                "next: do not pack"
            )
        texts = texts_of(segments)
        return self._run(tokens, texts.positions, texts.mask, None, None, texts.lengths)[0]

    def extend(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: Cache,
        slot: int | jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """As `hidden`, after the keys and values in ``cache``; those of ``tokens`` go to ``slot``.

        Args:
            tokens: (batch, length) int32.
            positions: (batch, length) int32, each token's place in its own row.
            mask: (batch, length, slots) bool, which slots a token sees.
            cache: from `empty_cache` or an earlier call.
            slot: int32 scalar, the first of ``length`` slots, the same for all rows.
        """
        return self._run(tokens, positions, mask, cache, slot)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores over the vocabulary, or of the labels where there are some, float32."""
        if self.config.labels:
            return self.classifier(hidden).astype(jnp.float32)
        out = self.embed.attend(hidden) if self.config.tied else self.head(hidden)
        out = laid_out(out, *[ANY] * (out.ndim - 1), MODEL).astype(jnp.float32)
        out = out if (scale := self.config.logit_scale) == 1.0 else out * scale
        return capped(out, self.config.logit_cap)

    def _run(self, tokens, positions, mask, cache, slot, lengths=None) -> tuple[jax.Array, Any]:
        config = self.config
        x = _kept(laid_out(self.embed(tokens), REPLICAS, None, WIDTH))
        if config.scaled_embedding:
            x = x * jnp.asarray(math.sqrt(config.width), x.dtype)
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        if config.learned_positions:
            x = x + self.positions(positions)
        if lengths is None:  # one text a row
            lengths = positions.max(axis=-1, keepdims=True) + 1
        shared, own = prepare(config, positions, lengths, mask, slot, x.dtype)
        if config.layer_inputs is not None:
            own = own._replace(given=self.layer_inputs(tokens, x))
        x = x if config.streams is None else spread(x, self.to_stream)
        x, cache = self.layers(x, shared, own, cache, slot)
        x = x if config.streams is None else gathered(x, self.from_stream)
        return self.norm(x), cache


def _last(hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
    """(batch, width): what stands at each row's last token that the mask shows, or at its end."""
    if mask is None:
        return hidden[:, -1]
    places = jnp.max(jnp.where(mask != 0, jnp.arange(mask.shape[1]), 0), axis=1)
    return jnp.take_along_axis(hidden, places[:, None, None], axis=1)[:, 0]


def empty_cache(config: DecoderConfig, batch: int, slots: int, dtype: Any) -> Cache:
    """Room for the keys and values of so many slots in each row."""

    def room(stack: Stack) -> tuple[jax.Array, ...]:
        layers = len(stack.layers)
        if stack.keys == BORROWED:
            return ()
        if (rule := stack.config.linear) is not None:
            one = empty_state(rule, batch, dtype)
            return jax.tree.map(lambda each: jnp.zeros((layers, *each.shape), each.dtype), one)
        shape = (layers, batch, slots, config.kv_heads)
        keys, values = (*shape, config.head_dim), (*shape, config.value_dim)
        return tuple(
            laid_out(jnp.zeros(shape, dtype), None, ROWS, None, MODEL, None)
            for shape in (keys, values)
        )

    rooms = tuple(map(room, stacks(config)))
    return rooms[0] if len(rooms) == 1 else rooms
