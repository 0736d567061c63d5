"""A loaded encoder: hidden states of texts and, with a head, scores of labels."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jlora._paths import key_for
from jlora.models import _families
from jlora.models._answers._sampling import GREEDY, Sampling
from jlora.models._files._stacking import expected_shapes
from jlora.models._files._torch_tensors import Stored
from jlora.models._model import Model
from jlora.models._net._encoder import Encoder
from jlora.models._net._encoder_config import Config, EncoderConfig
from jlora.models._net._kinds import encoder_is_none
from jlora.models._text._tokenizer import Tokenizer

_PADDING = "pad_token"
_SPREAD = 0.02  # of a fresh head's weights, as transformers draws them


@dataclasses.dataclass(frozen=True)
class EncoderModel(Model):
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
        encoder = Encoder(self.config, remat)
        return encoder.apply({"params": params}, tokens, mask, types)  # pyright: ignore[reportReturnType]

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
        encoder = Encoder(self.config, remat)
        return encoder.apply({"params": params}, tokens, mask, types, method="hidden")  # pyright: ignore[reportReturnType]

    def pooled(self, params: Any, hidden: jax.Array) -> jax.Array:
        """The pooler's output, (batch, width), of what `hidden` gives.

        Raises:
            ValueError: when the model has no pooler.
        """
        if not self.config.pooler:
            raise ValueError(f"{self.name} has no pooler: its file holds none")
        encoder = Encoder(self.config)
        return encoder.apply({"params": params}, hidden, method="pooled")  # pyright: ignore[reportReturnType]

    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """The labels' scores, (batch, labels) float32, of what `hidden` gives.

        Raises:
            ValueError: when the model has no head.
        """
        if not self.config.labels:
            raise ValueError(
                f"{self.name} has no head for classification: "
                "models.with_classifier(model, labels, key) gives it one"
            )
        encoder = Encoder(self.config)
        return encoder.apply({"params": params}, hidden, method="scores")  # pyright: ignore[reportReturnType]

    @property
    def task_type(self) -> str:
        """What PEFT calls the work that such a model does."""
        return "SEQ_CLS" if self.config.labels else "FEATURE_EXTRACTION"

    @property
    def head_names(self) -> tuple[str, ...]:
        """The entries of the parameters that `logits` alone reads."""
        return ("classifier",) if self.config.labels else ()

    def inputs(
        self, texts: Sequence[str | tuple[str, str]], *, max_length: int | None = None
    ) -> dict[str, np.ndarray]:
        """What `apply` takes for texts, or pairs of texts: ``tokens``, ``mask`` and ``types``.

        Each is (texts, length) int32, padded on the right, with the special tokens that the
        tokenizer puts around and between.

        Args:
            texts: each one text or a pair.
            max_length: the most tokens; a longer text loses its end. None: it is an error.

        Raises:
            ValueError: when a text is longer than the positions that the model has learned.
        """
        framed = [
            self.tokenizer.framed(
                *((each,) if isinstance(each, str) else each), max_length=max_length
            )
            for each in texts
        ]
        length = max((len(tokens) for tokens, _ in framed), default=0)
        longest = self.config.longest
        if length > longest:
            at = next(at for at, (tokens, _) in enumerate(framed) if len(tokens) > longest)
            raise ValueError(
                f"text {at} is {len(framed[at][0])} tokens long, but {self.name} has {longest} "
                f"positions: shorten it, or give max_length={longest}"
            )
        padding = self._padding()
        shape = (len(framed), length)
        arrays = {
            "tokens": np.full(shape, padding, np.int32),
            "mask": np.zeros(shape, np.int32),
            "types": np.zeros(shape, np.int32),
        }
        for row, (tokens, kinds) in enumerate(framed):
            arrays["tokens"][row, : len(tokens)] = tokens
            arrays["mask"][row, : len(tokens)] = 1
            # a model that knows one type alone reads every token as of it, as transformers does
            arrays["types"][row, : len(tokens)] = np.minimum(kinds, self.config.types - 1)
        return arrays

    def _padding(self) -> int:
        """The token that stands for padding; any will do where the mask hides it."""
        if self.config.padding is not None:
            return self.config.padding
        token = self.tokenizer.special.get(_PADDING)
        return (token and self.tokenizer.backend.token_to_id(token)) or 0

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
        """Nothing: an encoder writes no answers.

        Raises:
            ValueError: always.
        """
        raise encoder_is_none(self.config, self.name, "writes tokens")


def made(
    params: Any, config: Config, tokenizer: Tokenizer, name: str, attention: str = "blocks"
) -> Model:
    """The model of its configuration's kind."""
    if isinstance(config, EncoderConfig):
        return EncoderModel(params, config, tokenizer, name, attention)  # pyright: ignore[reportArgumentType]
    return Model(params, config, tokenizer, name, attention)


def with_classifier(model: Any, labels: Sequence[str], key: jax.Array) -> Any:
    """The `EncoderModel` with a fresh head that scores these labels; one that is there goes.

    So does transformers' ``AutoModelForSequenceClassification.from_pretrained(...,
    num_labels=...)``: weights are normal with a deviation of 0.02, biases zero. A family whose head
    reads the pooler gets a fresh one where its file had none. The head is to train:
    ``LoraConfig(train="classifier")``, and ``"classifier|pooler"`` where that is fresh too.

    Args:
        model: an encoder, or an `outline` of one.
        labels: the labels' names, in the order of the scores.
        key: random key; each weight's is folded from its path.

    Raises:
        ValueError: when the model is no encoder, or there are no labels or one twice.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> config = models.EncoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, mlp_width=8, max_length=64,
        ... )
        >>> init = jax.jit(models.Encoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> model = models.EncoderModel(params, config, tokenizer=None, name="tiny")
        >>> model = models.with_classifier(model, ("no", "yes", "maybe"), jax.random.key(1))
        >>> model.apply(model.params, jnp.array([[1, 2]])).shape
        (1, 3)
    """
    config = model.config
    if not isinstance(config, EncoderConfig):
        raise ValueError(f"{model.name} is a decoder: only an encoder gets a head by this")
    if not labels or isinstance(labels, str):
        raise ValueError(f"labels are {labels!r}: expected the name of at least one")
    config = dataclasses.replace(
        config, labels=tuple(labels), pooler=config.pooler or not config.own_dense
    )
    paths: dict[str, Any] = dict(flax.traverse_util.flatten_dict(model.params, sep="/"))
    embedding = paths["embed/embedding"]
    for path, shape in expected_shapes(config).items():
        if path.startswith("classifier/") or path not in paths:
            paths[path] = _fresh(path, shape, key, embedding)
    params = flax.traverse_util.unflatten_dict(paths, sep="/")
    return dataclasses.replace(model, params=params, config=config)


def _fresh(path: str, shape: tuple[int, ...], key: jax.Array, like: Any) -> Any:
    if isinstance(like, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, like.dtype)
    if path.endswith("/bias"):
        return jnp.zeros(shape, like.dtype)
    return _SPREAD * jax.random.normal(key_for(key, path), shape, like.dtype)
