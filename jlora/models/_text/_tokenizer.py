"""Text to tokens and back, and a conversation to text by the model's own template."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from jlora.models._text import _template
from jlora.models._text._renderer import Rendered
from jlora.models._text._template import Message


def today() -> str:
    """The date, as templates that print it are to see it all along: 2026-11-27."""
    return datetime.date.today().isoformat()


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer and chat template.

    Raises:
        ValueError: when ``date`` is no date such as 2026-11-27.

    Example:
        >>> import tokenizers
        >>> from jlora import models
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
        >>> template = "{{ messages[-1].content }}"
        >>> tokenizer = models.Tokenizer(words, template, stop_ids=(0,), special={}, where="tiny")
        >>> tokenizer.encode(tokenizer.render([{"role": "user", "content": "yes"}]))
        [1]
    """

    backend: Any  # tokenizers.Tokenizer
    template: str | None  # the default one is used where there is none
    stop_ids: tuple[int, ...]  # tokens that end an answer
    special: Mapping[str, str]  # bos_token, eos_token and the like, as templates know them
    where: str
    begin: str = ""  # the special token that the tokenizer puts before every text, if it does
    rows: int | None = None  # of the embedding: no token may be beyond it
    date: str = dataclasses.field(default_factory=today)  # for templates that print it
    around: Any = None  # what the tokenizer puts around a text or a pair: a post-processor

    def __post_init__(self):
        try:
            datetime.datetime.fromisoformat(self.date)
        except (ValueError, TypeError):
            raise ValueError(f"date is {self.date!r}: expected one such as 2026-11-27") from None

    def encode(self, text: str) -> list[int]:
        """The tokens of the text; special tokens in it are recognised, none are added.

        Raises:
            ValueError: when the text is none, or the model has no embedding for a token of it.
        """
        return self._encoded(text).ids

    def pieces(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of the text, and where each begins and ends in it, in letters.

        Raises:
            ValueError: as `encode`.
        """
        encoded = self._encoded(text)
        return encoded.ids, encoded.offsets

    def framed(
        self, text: str, second: str | None = None, *, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """The pair (tokens, types) of a text, or of two, within the tokenizer's own frame.

        That is ``[CLS] text [SEP] second [SEP]`` for BERT's; the types say which text a token is
        of. What is longer than ``max_length`` loses its end, of two texts the longer one first.

        Raises:
            ValueError: as `encode`, and when ``max_length`` is shorter than the frame.
        """
        parts = [self._encoded(each) for each in (text, second) if each is not None]
        if max_length is not None:
            frame = self.around.num_special_tokens_to_add(len(parts) > 1) if self.around else 0
            lengths = _shortened([len(part.ids) for part in parts], max_length - frame)
            if lengths is None:
                raise ValueError(
                    f"max_length is {max_length}, but the frame of {self.where} takes {frame} "
                    f"tokens, and each text at least one: expected more"
                )
            for part, length in zip(parts, lengths, strict=True):
                part.truncate(length)
        if self.around is None:
            each = [(at, type_) for type_, part in enumerate(parts) for at in part.ids]
            return [at for at, _ in each], [type_ for _, type_ in each]
        whole = self.around.process(*parts)
        return whole.ids, whole.type_ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, special tokens left out."""
        return self.backend.decode(list(tokens), skip_special_tokens=True)

    def spelled(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, special tokens among it."""
        return self.backend.decode(list(tokens), skip_special_tokens=False)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as the model expects it, by its own Jinja template (sandboxed).

        Raises:
            ValueError: when the template refuses the messages or takes too long.
        """
        return self.rendered(messages, add_generation_prompt=add_generation_prompt).text

    def rendered(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> Rendered:
        """What `render` gives, and which of it the template's ``{% generation %}`` encloses.

        Raises:
            ValueError: as `render`.
        """
        own = {} if self.template is not None else {"bos_token": self.begin, **self._end()}
        try:
            return _template.written(
                _template.DEFAULT if self.template is None else self.template,
                messages,
                special={**self.special, **own},
                now=self.date,
                add_generation_prompt=add_generation_prompt,
            )
        except ValueError as error:
            raise ValueError(f"the chat template of {self.where}: {error}") from None

    def _end(self) -> dict[str, str]:
        return {"eos_token": self.backend.id_to_token(self.stop_ids[0])}

    def _encoded(self, text: str) -> Any:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds half a character (a lone surrogate) at {error.start}"
            ) from None
        encoded = self.backend.encode(text, add_special_tokens=False)
        if self.rows is not None and encoded.ids and (highest := max(encoded.ids)) >= self.rows:
            token = self.backend.id_to_token(highest)
            raise ValueError(
                f"the token {token!r} has the number {highest}, but the embedding has {self.rows} "
                f"rows: the tokenizer of {self.where} is another model's, or was extended without "
                "the weights"
            )
        return encoded


def _shortened(lengths: list[int], room: int) -> list[int] | None:
    """The lengths with the longest made shorter until they fit; None where one would vanish."""
    lengths = list(lengths)
    while sum(lengths) > room:
        longest = max(range(len(lengths)), key=lambda at: lengths[at])
        lengths[longest] -= 1
        if lengths[longest] < 1:
            return None
    return lengths
