"""What a model will see of examples, as a person reads it, and which of it is trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

from jlora.data._turn import Example

_BRACKETS = "[[", "]]"
_GREEN = "\x1b[32m", "\x1b[0m"


class Spells(Protocol):
    """What `preview` asks of a tokenizer."""

    def spelled(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, special tokens among it."""
        ...


def preview(
    examples: Sequence[Example], tokenizer: Spells, count: int = 3, *, terminal: bool = False
) -> str:
    """The text of the first examples, what is trained of it marked.

    Args:
        examples: from `encode`.
        tokenizer: a model's.
        count: how many at most.
        terminal: whether it will stand in a terminal: what is trained is green there, and stands
            in double brackets elsewhere.

    Raises:
        ValueError: when ``count`` is below 1.

    Example:
        >>> import jlora
        >>> class Letters:  # stands for `jlora.models.Tokenizer`
        ...     def spelled(self, tokens):
        ...         return bytes(tokens).decode()
        >>> example = jlora.data.Example(tokens=list(b"2+2=4."), answers=[3, 4])
        >>> print(jlora.data.preview([example], Letters()))
        example 1: 6 tokens, 2 trained
        2+2=[[4.]]
    """
    if count < 1:
        raise ValueError(f"count is {count}: expected at least 1")
    before, behind = _GREEN if terminal else _BRACKETS
    shown = []
    for at in range(min(count, len(examples))):
        tokens, answers = examples[at]
        trained = {position + 1 for position in answers}
        parts = []
        for is_trained, places in itertools.groupby(range(len(tokens)), trained.__contains__):
            text = tokenizer.spelled([tokens[place] for place in places])
            parts.append(f"{before}{text}{behind}" if is_trained else text)
        head = f"example {at + 1}: {len(tokens)} tokens, {len(trained)} trained"
        shown.append(f"{head}\n{''.join(parts)}")
    return "\n\n".join(shown)
