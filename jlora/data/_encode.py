"""Conversations into tokens, with the positions at which the answer is to be predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jlora.data._rows import Messages


class Tokenizer(Protocol):
    """What `encode` asks of a tokenizer."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """The tokens that end a turn."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of the text."""
        ...

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """The text of the conversation in the model's chat template."""
        ...


class Example(NamedTuple):
    """One conversation as the model reads it.

    Example:
        >>> from jlora.data import Example
        >>> example = Example(tokens=[5, 3, 7, 1], answers=[1, 2])
        >>> [example.tokens[position + 1] for position in example.answers]  # what is to be said
        [7, 1]
    """

    tokens: list[int]
    answers: list[int]  # positions whose next token belongs to an answer


@dataclasses.dataclass(frozen=True)
class EncodeReport:
    """What the length limit did to the rows.

    Example:
        >>> from jlora.data import EncodeReport
        >>> print(EncodeReport(rows=10, cut=2, dropped=1, max_length=256))
        10 rows, 3 longer than 256 tokens: 2 cut, 1 dropped because nothing of the answer was left
    """

    rows: int
    cut: int  # longer than the limit, and trained on without their end
    dropped: int  # no token of their answers was within the limit
    max_length: int

    def __str__(self) -> str:
        if not (self.cut or self.dropped):
            return f"{self.rows} rows, none longer than {self.max_length} tokens"
        return (
            f"{self.rows} rows, {self.cut + self.dropped} longer than {self.max_length} tokens: "
            f"{self.cut} cut, {self.dropped} dropped because nothing of the answer was left"
        )


def encode(
    rows: Sequence[Messages], tokenizer: Tokenizer, *, max_length: int
) -> tuple[list[Example], EncodeReport]:
    """The examples of at most ``max_length`` tokens, and a report of what was cut.

    Each turn of the assistant is an answer, from its first token to the one that ends the turn.
    Prompts are tokenized apart from answers, as they are when the model generates.

    Args:
        rows: conversations.
        tokenizer: the model's, `jlora.models.Model.tokenizer`.
        max_length: tokens of a prompt and its answers together.

    Raises:
        ValueError: when a chat template rewrites earlier turns, so that no prefix of the text is
            the prompt; or when the limit leaves no answer at all.

    Example:
        >>> import jlora
        >>> class Bytes:  # stands for `jlora.models.Tokenizer`
        ...     stop_ids = (10,)  # a turn ends with its line
        ...     def encode(self, text):
        ...         return list(text.encode())
        ...     def render(self, messages, *, add_generation_prompt=False):
        ...         return "".join(message["content"] + "\\n" for message in messages)
        >>> row = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
        >>> [example], report = jlora.data.encode([row], Bytes(), max_length=256)
        >>> bytes(example.tokens), example.answers
        (b'2+2\\n4\\n', [3, 4])
    """
    examples: list[Example] = []
    cut = dropped = 0
    for index, row in enumerate(rows):
        tokens, answers = _encode(row, tokenizer, index)
        if len(tokens) > max_length:
            tokens = tokens[:max_length]
            answers = [position for position in answers if position + 1 < max_length]
            cut, dropped = (cut + 1, dropped) if answers else (cut, dropped + 1)
        if answers:
            examples.append(Example(tokens, answers))
    report = EncodeReport(len(rows), cut, dropped, max_length)
    if not examples:
        raise ValueError(f"no row has an answer within the length limit: {report}")
    return examples, report


def answerable(
    rows: Sequence[Messages], tokenizer: Tokenizer, *, max_length: int
) -> list[Messages]:
    """The rows whose prompt leaves room for an answer within the limit.

    Args:
        rows: conversations.
        tokenizer: the model's, `jlora.models.Model.tokenizer`.
        max_length: tokens of a prompt and its answer together.

    Raises:
        ValueError: when there is none.

    Example:
        >>> import jlora
        >>> class Bytes:  # stands for `jlora.models.Tokenizer`
        ...     stop_ids = (10,)  # a turn ends with its line
        ...     def encode(self, text):
        ...         return list(text.encode())
        ...     def render(self, messages, *, add_generation_prompt=False):
        ...         return "".join(message["content"] + "\\n" for message in messages)
        >>> row = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
        >>> long = [{"role": "user", "content": "two and two"}, row[-1]]
        >>> jlora.data.answerable([row, long], Bytes(), max_length=8) == [row]
        True
    """
    prompts = (tokenizer.render(row[:-1], add_generation_prompt=True) for row in rows)
    lengths = [len(tokenizer.encode(prompt)) for prompt in prompts]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length < max_length]
    if not kept:
        raise ValueError(
            f"every held-out row has a prompt of at least {max_length} tokens "
            f"(the shortest has {min(lengths)}): raise the limit"
        )
    return kept


def _encode(row: Messages, tokenizer: Tokenizer, index: int) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    answers: list[int] = []
    done = ""
    for turn, message in enumerate(row):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.render(row[:turn], add_generation_prompt=True)
        answered = tokenizer.render(row[: turn + 1])
        if not (prompt.startswith(done) and answered.startswith(prompt)):
            raise ValueError(
                f"row {index + 1}: the model's chat template rewrites earlier turns when turn "
                f"{turn + 1} is added, so its answers can't be told from its prompts. "
                "Give conversations of one question and one answer"
            )
        tokens += tokenizer.encode(prompt[len(done) :])
        turn_tokens = tokenizer.encode(answered[len(prompt) :])
        ends = [i for i, token in enumerate(turn_tokens) if token in tokenizer.stop_ids]
        if not ends:  # a template without an end of turn: the model must still learn to stop
            turn_tokens.append(tokenizer.stop_ids[0])
        length = ends[0] + 1 if ends else len(turn_tokens)
        answers += range(len(tokens) - 1, len(tokens) - 1 + length)
        tokens += turn_tokens
        done = answered
    return tokens[: answers[-1] + 2], answers  # what follows the last answer teaches nothing
