"""A loaded encoder: hidden states of texts and, with a head, scores of labels."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax

from jlora.models import _families
from jlora.models._files._torch_tensors import Stored
from jlora.models._layout import Layout
from jlora.models._model import Model
from jlora.models._net._encoder import Encoder
from jlora.models._net._encoder_config import Config, EncoderConfig
from jlora.models._text._tokenizer import Tokenizer
from jlora.models._text_model import TextModel


@dataclasses.dataclass(frozen=True)
class EncoderModel(TextModel):
    """A loaded encoder. Its functions are pure: parameters go in as the first argument.

    `load` gives one; it can also be made of its parts, here without a tokenizer:

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> config = models.EncoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, mlp_width=8, max_length=64,
        ...     labels=("no", "yes"),
        ... )
        >>> init = jax.jit(models.Encoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> model = models.EncoderModel(params, config, tokenizer=None, name="tiny")
        >>> tokens, mask = jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 0]])
        >>> model.apply(model.params, tokens, mask).shape  # (batch, labels)
        (1, 2)
        >>> model.hidden(model.params, tokens, mask).shape  # (batch, length, width)
        (1, 3, 8)
    """

    config: EncoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def stored(self) -> Mapping[str, Stored]:
        """How each parameter lies in a Hugging Face file of such a model, by our path."""
        if self.config.labels:
            return super().stored
        prefix = _families.family_of(self.config.family, self.name).prefix
        bare = {
            path: dataclasses.replace(leaf, name=leaf.name.removeprefix(prefix))
            for path, leaf in super().stored.items()
        }
        return types.MappingProxyType(bare)

    def apply(
        self,
        params: Any,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        remat: str = "products",
    ) -> jax.Array:
        """The labels' scores, (batch, labels) float32; without a head what `hidden` gives.

        Args:
            params: the parameters.
            tokens: (batch, length) int32.
            mask: (batch, length), 0 for padding; every token is seen without it.
            types: (batch, length) int32, 1 for tokens of a second text; 0 without it.
            remat: one of `REMATS`, what each layer keeps for its gradient, as in `answer_loss`.

        Raises:
            ValueError: when there are more tokens than positions that the model has learned.
        """
        return self._computed("__call__", params, tokens, mask, types, remat=remat)

    def hidden(
        self,
        params: Any,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        remat: str = "products",
    ) -> jax.Array:
        """The last layer's output, (batch, length, width); arguments as of `apply`.

        Raises:
            ValueError: as `apply`.
        """
        return self._computed("hidden", params, tokens, mask, types, remat=remat)

    def pooled(self, params: Any, hidden: jax.Array) -> jax.Array:
        """The pooler's output, (batch, width), of what `hidden` gives.

        Raises:
            ValueError: when the model has no pooler.
        """
        if not self.config.pooler:
            raise ValueError(f"{self.name} has no pooler: its file holds none")
        return self._computed("pooled", params, hidden)

    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """The labels' scores, (batch, labels) float32, of what `hidden` gives.

        Raises:
            ValueError: when the model has no head.
        """
        self.require_labels()
        return self._computed("scores", params, hidden)

    def _net(self, remat: str) -> Encoder:
        return Encoder(self.config, remat)

    @property
    def task_type(self) -> str:
        """What PEFT calls the work that such a model does."""
        return "SEQ_CLS" if self.config.labels else "FEATURE_EXTRACTION"

    @property
    def head_names(self) -> tuple[str, ...]:
        """The entries of the parameters that `logits` alone reads."""
        return ("classifier",) if self.config.labels else ()

    def _padding(self) -> int:
        """That of the configuration, behind whose number positions begin, if it has one."""
        return super()._padding() if self.config.padding is None else self.config.padding


def made(
    params: Any,
    config: Config,
    tokenizer: Tokenizer,
    name: str,
    attention: str = "blocks",
    layout: Layout | None = None,
) -> Model | EncoderModel:
    """The model of its configuration's kind."""
    its = (tokenizer, name, attention, layout)
    if isinstance(config, EncoderConfig):
        return EncoderModel(params, config, *its)  # pyright: ignore[reportArgumentType]
    return Model(params, config, *its)
