"""Where an answer stops: at a token, or at a string in its text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Stops:
    """The tokens and the strings that end an answer; neither is part of it."""

    tokens: tuple[int, ...]
    strings: tuple[str, ...]

    def tokens_before(self, tokens: np.ndarray) -> list[int]:
        """The tokens before the first that stops."""
        stopping = np.flatnonzero(np.isin(tokens, self.tokens))
        return tokens[: stopping[0]].tolist() if len(stopping) else tokens.tolist()

    def text_before(self, text: str) -> str:
        """The text before the string that stops it first; all of it if there is none.

        First is what ends first, so that a text that is still being written stops at the same one.
        """
        found = [(text.find(string) + len(string), text.find(string)) for string in self.strings]
        found = [(end, at) for end, at in found if at >= 0]
        return text[: min(found)[1]] if found else text

    def settled(self, text: str) -> str:
        """The beginning of an unfinished text that no further token can change or cut off.

        Held back: replacement characters at its end, which stand for the first bytes of a
        character, and an end with which a string that stops could begin.
        """
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        begun = [
            length
            for string in self.strings
            for length in range(1, len(string))
            if whole.endswith(string[:length])
        ]
        return whole[: len(whole) - max(begun, default=0)]


def stops_of(tokenizer: Any, stop: str | Sequence[str]) -> Stops:
    """The tokenizer's own stop tokens and ``stop``: strings, or special tokens by their name.

    Raises:
        ValueError: when one is empty.
    """
    names = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in names:
        raise ValueError("stop: an empty string would stop every answer before it begins")
    special = {
        token.content: at
        for at, token in tokenizer.backend.get_added_tokens_decoder().items()
        if token.special  # left out of the text, so never found there
    }
    tokens = dict.fromkeys((*tokenizer.stop_ids, *(special[n] for n in names if n in special)))
    return Stops(tuple(tokens), tuple(name for name in names if name not in special))
