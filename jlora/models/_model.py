"""A loaded model: its parameters, and its functions of them."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jlora.models import _families
from jlora.models._answers import _generate
from jlora.models._answers._sampling import GREEDY, Sampling
from jlora.models._files import _stacking
from jlora.models._files._torch_tensors import Stored
from jlora.models._net._config import DecoderConfig
from jlora.models._net._decoder import Decoder
from jlora.models._text._tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded model. Its functions are pure: parameters go in as the first argument.

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

    params: dict[str, Any]
    config: DecoderConfig
    tokenizer: Tokenizer
    name: str
    attention: str = "blocks"  # as `load` describes it

    @property
    def stored(self) -> Mapping[str, Stored]:
        """How each parameter lies in a Hugging Face file, by our path."""
        leaves = _families.family_of(self.config.family, self.name).leaves
        paths: Any = flax.traverse_util.flatten_dict(self.params, sep="/")
        return types.MappingProxyType({path: _stacking.stored_of(leaves, path) for path in paths})

    @property
    def names(self) -> Mapping[str, str]:
        """What transformers calls each parameter, by our path; ``{}`` stands for the layer."""
        return types.MappingProxyType({path: leaf.name for path, leaf in self.stored.items()})

    def apply(self, params: Any, tokens: jax.Array, *, remat: str = "products") -> jax.Array:
        """Scores over the vocabulary, (batch, length, vocabulary) float32, of tokens from the left.

        Padding on the right needs no mask: no token sees what comes after it. ``remat`` is one of
        `REMATS`, as in `answer_loss`.
        """
        decoder = Decoder(self.config, remat, self.attention)
        return decoder.apply({"params": params}, tokens)  # pyright: ignore[reportReturnType]

    def hidden(self, params: Any, tokens: jax.Array, *, remat: str = "products") -> jax.Array:
        """What `logits` reads: (batch, length, width); ``remat`` as in `answer_loss`."""
        decoder = Decoder(self.config, remat, self.attention)
        return decoder.apply({"params": params}, tokens, method="hidden")  # pyright: ignore[reportReturnType]

    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """Scores over the vocabulary, float32, at the places that ``hidden`` (..., width) holds."""
        decoder = Decoder(self.config)
        return decoder.apply({"params": params}, hidden, method="logits")  # pyright: ignore[reportReturnType]

    @property
    def task_type(self) -> str:
        """What PEFT calls the work that such a model does."""
        return "CAUSAL_LM"

    @property
    def head_names(self) -> tuple[str, ...]:
        """The entries of the parameters that `logits` reads."""
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
            ValueError: when there is a temperature and no key.
        """
        numbers = sampling.numbers()
        if key is None:
            if "temperature" in numbers:
                raise ValueError("generate: a temperature needs a random key: pass key=")
            key = jax.random.key(0)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(tokens)))
        rules = _generate.Rules(np.array(self.tokenizer.stop_ids, np.int32), numbers)
        decoder = Decoder(self.config)
        return _generate.generate(decoder, params, tokens, starts, keys, rules, max_new_tokens)
