"""What a loaded model of texts has, whether it writes them or reads them alone."""

from __future__ import annotations

import abc
import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from jlora.models import _families
from jlora.models._files import _stacking
from jlora.models._files._torch_tensors import Stored
from jlora.models._layout import Layout, computed
from jlora.models._net._encoder_config import Config
from jlora.models._text._tokenizer import Tokenizer

_PADDING = "pad_token"


@dataclasses.dataclass(frozen=True)
class TextModel(abc.ABC):
    """What `Model`, a decoder, and `EncoderModel` have in common. None is of this class alone.

    Either may have a head that scores labels: `classifier` gives the scores, whatever the model.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64, labels=("no", "yes"),
        ... )
        >>> init = jax.jit(models.Decoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> model = models.Model(params, config, tokenizer=None, name="tiny")
        >>> isinstance(model, models.TextModel)
        True
        >>> batch = {"tokens": jnp.array([[1, 2, 0]]), "mask": jnp.array([[1, 1, 0]])}
        >>> model.classifier(model.params, batch).shape  # (rows, labels)
        (1, 2)
    """

    params: dict[str, Any]
    config: Config
    tokenizer: Tokenizer
    name: str
    attention: str = "blocks"  # as `load` describes it
    layout: Layout | None = None  # where it lies on a mesh, if on one

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

    @property
    @abc.abstractmethod
    def task_type(self) -> str:
        """What PEFT calls the work that such a model does."""

    @property
    @abc.abstractmethod
    def head_names(self) -> tuple[str, ...]:
        """The entries of the parameters that `logits` reads and `hidden` does not."""

    @abc.abstractmethod
    def apply(
        self,
        params: Any,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        remat: str = "products",
    ) -> jax.Array:
        """What the model gives, as its own class describes it."""

    @abc.abstractmethod
    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """The head's scores, float32, as the model's own class describes them."""

    def classifier(
        self, params: Any, batch: Mapping[str, Any], *, remat: str = "products"
    ) -> jax.Array:
        """The labels' scores, (rows, labels) float32.

        Args:
            params: the parameters; `jlora.lift` makes them (frozen, lora).
            batch: ``tokens`` (rows, length) int32, padded on the right, and ``mask``, 0 for
                padding; an encoder reads ``types`` too. What else there is, is not read.
            remat: one of `REMATS`, as in `answer_loss`.

        Raises:
            ValueError: when the model has no head for classification, or there are more tokens
                than positions that it has learned.
        """
        self.require_labels()
        read = (batch["tokens"], batch.get("mask"), batch.get("types"))
        return self.apply(params, *read, remat=remat)

    def inputs(
        self, texts: Sequence[str | tuple[str, str]], *, max_length: int | None = None
    ) -> dict[str, np.ndarray]:
        """What `apply` takes for texts, or pairs of texts: ``tokens``, ``mask`` and ``types``.

        Each is (texts, length) int32, padded on the right, with the special tokens that the
        tokenizer puts around and between. A decoder reads no ``types``.

        Args:
            texts: each one text or a pair.
            max_length: the most tokens; a longer text loses its end. None: it is an error.

        Raises:
            ValueError: when a text is longer than the positions that the model has learned, or is
                no token at all.
        """
        framed = [
            self.tokenizer.framed(
                *((each,) if isinstance(each, str) else each), max_length=max_length
            )
            for each in texts
        ]
        longest = self.config.longest
        for at, (tokens, _) in enumerate(framed):
            if len(tokens) > longest:
                raise ValueError(
                    f"text {at} is {len(tokens)} tokens long, but {self.name} has {longest} "
                    f"positions: shorten it, or give max_length={longest}"
                )
            if not tokens:
                raise ValueError(f"text {at} is empty: the tokenizer of {self.name} makes no token")
        shape = (len(framed), max((len(tokens) for tokens, _ in framed), default=0))
        arrays = {
            "tokens": np.full(shape, self._padding(), np.int32),
            "mask": np.zeros(shape, np.int32),
            "types": np.zeros(shape, np.int32),
        }
        for row, (tokens, kinds) in enumerate(framed):
            arrays["tokens"][row, : len(tokens)] = tokens
            arrays["mask"][row, : len(tokens)] = 1
            arrays["types"][row, : len(tokens)] = kinds
        return arrays

    def require_labels(self) -> None:
        """Nothing, where the model has a head for classification.

        Raises:
            ValueError: where it has none.
        """
        if not self.config.labels:
            raise ValueError(
                f"{self.name} has no head for classification: "
                "models.with_classifier(model, labels, key) gives it one"
            )

    @abc.abstractmethod
    def _net(self, remat: str) -> nn.Module:
        """The net, whose methods compute."""

    def _computed(self, method: str, params: Any, *args: Any, remat: str = "products") -> Any:
        """What a method of the net gives, where the layout says."""
        net = self._net(remat)

        def run(params: Any, *args: Any) -> Any:
            return net.apply({"params": params}, *args, method=method)

        return computed(self.layout, run)(params, *args)

    def _padding(self) -> int:
        """The token that stands for padding; any will do where the mask hides it."""
        token = self.tokenizer.special.get(_PADDING)
        return (token and self.tokenizer.backend.token_to_id(token)) or 0
