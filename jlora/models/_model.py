"""A loaded model: its parameters, and the pure functions of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jlora.models import _answer, _generate
from jlora.models._config import DecoderConfig
from jlora.models._decoder import Decoder
from jlora.models._tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A causal language model: data, and functions that get the parameters as an argument.

    Every method that takes ``params`` is pure and works under jit, grad, vmap and `jlora.lift`;
    none looks at ``self.params``.
    """

    params: Any  # nested dict of arrays; the tree is described in _decoder.py
    config: DecoderConfig
    tokenizer: Tokenizer
    name: str
    source: str  # the file or folder that it came from

    def apply(self, params: Any, tokens: jax.Array, *, remat: bool = False) -> jax.Array:
        """Logits (batch, length, vocabulary), float32, of tokens (batch, length).

        Rows may be padded on the right: a token never sees those after it.
        With ``remat`` the backward pass recomputes each layer and keeps only its input.
        """
        return self.logits(params, self.hidden(params, tokens, remat=remat))

    def hidden(self, params: Any, tokens: jax.Array, *, remat: bool = False) -> jax.Array:
        """The last hidden states (batch, length, width), normalised: what `logits` takes."""
        decoder = Decoder(self.config, remat=remat)
        states = decoder.apply({"params": params}, jnp.asarray(tokens), method="hidden")
        return states  # pyright: ignore[reportReturnType]

    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """Logits (..., vocabulary), float32, of hidden states (..., width): any choice of them."""
        scores = Decoder(self.config).apply({"params": params}, hidden, method="logits")
        return scores  # pyright: ignore[reportReturnType]

    def generate(
        self, params: Any, tokens: jax.Array, lengths: jax.Array, *, max_new_tokens: int
    ) -> jax.Array:
        """The most likely continuations (batch, max_new_tokens), int32, greedily token by token.

        One pure function: the prompts are read at once, then a loop appends a token to each row
        until every row has ended. A row that ended is filled up with the tokenizer's first stop
        id. jit it with ``static_argnames="max_new_tokens"``.

        Args:
            params: the parameters.
            tokens: prompts (batch, length), padded on the left with anything.
            lengths: (batch,), how many tokens of each row, counted from its end, are the prompt.
            max_new_tokens: at least 1.
        """
        return _generate.greedy(
            self.config,
            params,
            jnp.asarray(tokens),
            jnp.asarray(lengths),
            max_new_tokens=max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
        )

    def answer(
        self,
        generate: Callable[..., jax.Array],
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 32,
    ) -> list[str]:
        """What the model says after each prompt, without special tokens, in the prompts' order.

        Prompts of like length share a batch, padded to one of few lengths, so that ``generate``
        is compiled for few shapes.

        Args:
            generate: `generate` with its weights given: ``(tokens, lengths, *, max_new_tokens)``.
            prompts: texts as the model reads them, such as ``tokenizer.render`` returns.
            max_new_tokens: longest answer, in tokens.
            batch_size: prompts that are answered at once.

        Raises:
            ValueError: when a prompt has no tokens.

        Example:
            >>> generate = jax.jit(jlora.lift(model.generate), static_argnames="max_new_tokens")
            >>> adapted = functools.partial(generate, frozen, lora)
            >>> [text] = model.answer(adapted, ["The capital of France is"], max_new_tokens=8)
        """
        return _answer.answer(
            self.tokenizer,
            generate,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
