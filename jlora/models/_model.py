"""A loaded decoder: it writes texts, or scores labels where it has a head for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora.models._answers import _generate
from jlora.models._answers._sampling import GREEDY, Sampling
from jlora.models._layout import computed
from jlora.models._net._config import DecoderConfig
from jlora.models._net._decoder import Decoder
from jlora.models._net._kinds import require_writer
from jlora.models._text_model import TextModel


@dataclasses.dataclass(frozen=True)
class Model(TextModel):
    """A loaded decoder. Its functions are pure: parameters go in as the first argument.

    `load` gives one; it can also be made of its parts, here without a tokenizer:

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> init = jax.jit(models.Decoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> model = models.Model(params, config, tokenizer=None, name="tiny")
        >>> model.apply(model.params, jnp.array([[1, 2, 1]])).shape  # (batch, length, vocabulary)
        (1, 3, 3)
    """

    config: DecoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def apply(
        self,
        params: Any,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        segments: jax.Array | None = None,
        remat: str = "products",
    ) -> jax.Array:
        """Scores over the vocabulary, (batch, length, vocabulary) float32, of tokens from the left.

        With a head for classification the labels' scores, (batch, labels), at each row's last
        token.

        Args:
            params: the parameters.
            tokens: (batch, length) int32, padded on the right.
            mask: (batch, length), 0 for padding: it says which token is a row's last. No token sees
                what comes after it, so scores over the vocabulary need none.
            types: not read; an encoder has them.
            segments: (batch, length) int32, where texts share a sequence: no token sees one of
                another text, and each text's positions begin at 0. A text begins wherever the
                number changes; the numbers mean nothing else.
            remat: one of `REMATS`, as in `answer_loss`.

        Raises:
            ValueError: when there are more tokens than learned positions, or segments, and another
                ``attention`` than blocks.
        """
        return self._computed("__call__", params, tokens, mask, segments, remat=remat)

    def hidden(
        self,
        params: Any,
        tokens: jax.Array,
        *,
        segments: jax.Array | None = None,
        remat: str = "products",
    ) -> jax.Array:
        """What `logits` reads: (batch, length, width); arguments and errors as of `apply`."""
        return self._computed("hidden", params, tokens, segments, remat=remat)

    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """The head's scores, float32, at the places that ``hidden`` (..., width) holds."""
        return self._computed("logits", params, hidden)

    def _net(self, remat: str) -> Decoder:
        return Decoder(self.config, remat, self.attention)

    @property
    def task_type(self) -> str:
        """What PEFT calls the work that such a model does."""
        return "SEQ_CLS" if self.config.labels else "CAUSAL_LM"

    @property
    def head_names(self) -> tuple[str, ...]:
        """The entries of the parameters that `logits` reads."""
        if self.config.labels:
            return ("classifier",)
        return ("embed",) if self.config.tied else ("head",)

    def generate(
        self,
        params: Any,
        tokens: jax.Array,
        starts: jax.Array,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The next tokens: (batch, max_new_tokens) int32; stop tokens fill the rest.

        Args:
            params: the parameters.
            tokens: (batch, length) int32, prompts padded on the left.
            starts: (batch,) int32, where each prompt begins.
            max_new_tokens: the longest answer; static.
            sampling: how tokens are chosen; static.
            key: random key, from which each row's is folded by its place; needed with a
                temperature.

        Raises:
            ValueError: when there is a temperature and no key, or the model has a head for
                classification.
        """
        require_writer(self.config, self.name, "writes tokens")
        numbers = sampling.numbers()
        if key is None:
            if "temperature" in numbers:
                raise ValueError("generate: a temperature needs a random key: pass key=")
            key = jax.random.key(0)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(tokens)))
        rules = _generate.Rules(np.array(self.tokenizer.stop_ids, np.int32), numbers)
        decoder = Decoder(self.config)

        def run(*args: Any) -> jax.Array:
            return _generate.generate(decoder, *args, max_new_tokens=max_new_tokens)

        return computed(self.layout, run)(params, tokens, starts, keys, rules)
