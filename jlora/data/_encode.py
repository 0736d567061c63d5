"""Conversations into tokens, with the positions at which the answer is to be predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from jlora import _words
from jlora.data._examples import Collected, Examples
from jlora.data._messages import Messages, is_plain_text, text_of
from jlora.data._turn import Example, Tokenizer, reasoning_of, turn_of

TRAINED_TURNS = ("all", "last")  # of the assistant's


@dataclasses.dataclass(frozen=True)
class EncodeReport:
    """What became of the rows.

    Example:
        >>> from jlora.data import EncodeReport
        >>> print(EncodeReport(rows=10, cut=2, dropped=1, max_length=256))
        10 rows, 3 longer than 256 tokens: 2 cut, 1 dropped because nothing of the answer was left
    """

    rows: int
    cut: int  # longer than the limit, and trained on without their end
    dropped: int  # no token of their answers was within the limit
    max_length: int
    examples: int | None = None  # made of the rows, where a row became several
    reasoning: int = 0  # rows whose reasoning is read and not trained on

    def __str__(self) -> str:
        several = self.examples is not None and self.examples != self.rows
        rows = f"{self.rows} rows as {self.examples} examples" if several else f"{self.rows} rows"
        thought = f"; the reasoning of {self.reasoning} is not trained on" if self.reasoning else ""
        if not (self.cut or self.dropped):
            return f"{rows}, none longer than {self.max_length} tokens{thought}"
        return (
            f"{rows}, {self.cut + self.dropped} longer than {self.max_length} tokens: "
            f"{self.cut} cut, {self.dropped} dropped because nothing of the answer was left"
            f"{thought}"
        )


def encode(
    rows: Collection[Messages],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    train_reasoning: bool = False,
    train_on: str = "all",
    folder: str | Path | None = None,
) -> tuple[Examples[Example], EncodeReport]:
    """The examples of at most ``max_length`` tokens, and a report of what was cut.

    Each turn of the assistant is an answer, from its first token to the one that ends the turn; or
    what the template's ``{% generation %}`` encloses. What stands before an answer is, token for
    token, what the model reads when it generates one: a token that would span both is split there.
    Where a template writes a turn in another way once others follow, or where such a split would
    fall into an earlier turn, each turn becomes an example of its own.

    Args:
        rows: from `read_rows`; they are read once, in their order.
        tokenizer: a model's.
        max_length: of an example, in tokens.
        train_reasoning: the reasoning in an answer is trained too, not only read.
        train_on: ``"all"`` of the assistant's turns, or the ``"last"`` one of each row; those of
            ``"weight": 0`` are left out before.
        folder: for the tokens once they are more than some 100 MB; in memory without one.

    Raises:
        ValueError: naming the row that the model's chat template does not take, or leaves a part
            of out; or when the limit leaves no answer at all, or ``train_on`` is something else.

    Example:
        >>> import jlora
        >>> class Bytes:  # stands for `jlora.models.Tokenizer`
        ...     stop_ids, begin = (10,), ""  # a turn ends with its line
        ...     def pieces(self, text):
        ...         return list(text.encode()), [(at, at + 1) for at in range(len(text))]
        ...     def encode(self, text):
        ...         return self.pieces(text)[0]
        ...     def render(self, messages, *, add_generation_prompt=False):
        ...         return "".join(message["content"] + "\\n" for message in messages)
        ...     def rendered(self, messages, **options):
        ...         return self.render(messages, **options), None
        >>> row = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
        >>> [example], report = jlora.data.encode([row], Bytes(), max_length=256)
        >>> bytes(example.tokens), example.answers
        (b'2+2\\n4\\n', [3, 4])
    """
    if train_on not in TRAINED_TURNS:
        raise ValueError(f"train_on is {train_on!r}: expected one of {', '.join(TRAINED_TURNS)}")
    examples = Collected(Example, folder)
    cut = dropped = made = reasoning = 0
    for number, row in enumerate(rows, start=1):
        try:
            its = _examples(row, tokenizer, train_reasoning, train_on)
        except ValueError as error:
            raise _of_row(number, row, error) from None
        made += len(its)
        reasoning += not train_reasoning and any(map(reasoning_of, row))
        for tokens, answers in its:
            if len(tokens) > max_length:
                tokens = tokens[:max_length]
                answers = [position for position in answers if position + 1 < max_length]
                cut, dropped = (cut + 1, dropped) if answers else (cut, dropped + 1)
            if answers:
                examples.append(Example(tokens, answers))
    report = EncodeReport(len(rows), cut, dropped, max_length, made, reasoning)
    if not len(examples):
        raise ValueError(f"no row has an answer within the length limit: {report}")
    return examples.whole(), report


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
        ...     stop_ids, begin = (10,), ""  # a turn ends with its line
        ...     def pieces(self, text):
        ...         return list(text.encode()), [(at, at + 1) for at in range(len(text))]
        ...     def encode(self, text):
        ...         return self.pieces(text)[0]
        ...     def render(self, messages, *, add_generation_prompt=False):
        ...         return "".join(message["content"] + "\\n" for message in messages)
        ...     def rendered(self, messages, **options):
        ...         return self.render(messages, **options), None
        >>> row = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
        >>> long = [{"role": "user", "content": "two and two"}, row[-1]]
        >>> jlora.data.answerable([row, long], Bytes(), max_length=8) == [row]
        True
    """
    lengths = [_prompt_length(number, row, tokenizer) for number, row in enumerate(rows, start=1)]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length < max_length]
    if not kept:
        raise ValueError(
            f"every held-out row has a prompt of at least {max_length} tokens "
            f"(the shortest has {min(lengths)}): raise the limit"
        )
    return kept


def _prompt_length(number: int, row: Messages, tokenizer: Tokenizer) -> int:
    if is_plain_text(row):
        return 0
    try:
        return len(tokenizer.encode(tokenizer.render(row[:-1], add_generation_prompt=True)))
    except ValueError as error:
        raise _of_row(number, row, error) from None


def _of_row(number: int, row: Messages, error: ValueError) -> ValueError:
    """The error with its row: by what it says too, since rows that are held out count apart."""
    return ValueError(
        f"row {number}: {error} (the row begins: {_words.one_line(text_of(row[0]), 60)})"
    )


def _examples(
    row: Messages, tokenizer: Tokenizer, train_reasoning: bool, train_on: str
) -> list[Example]:
    """The row's turns, as many in one example as the template lets stand together."""
    if is_plain_text(row):
        return [_of_text(text_of(row[0]), tokenizer)]
    trained = [
        turn
        for turn, message in enumerate(row)
        if message["role"] == "assistant" and message.get("weight") != 0
    ]
    trained = trained[-1:] if train_on == "last" else trained
    examples: list[Example] = []
    for turn in reversed(trained):
        messages = row[: turn + 1]
        tokens, answers = turn_of(messages, tokenizer, train_reasoning, last=turn == trained[-1])
        whole = examples[-1] if examples else None
        if not answers:
            continue
        if whole is not None and whole.tokens[: len(tokens)] == tokens:
            examples[-1] = Example(whole.tokens, [*answers, *whole.answers])
        else:
            examples.append(Example(tokens, answers))
    if not examples:
        raise ValueError("the {% generation %} of the model's chat template encloses no answer")
    return examples[::-1]


def _of_text(text: str, tokenizer: Tokenizer) -> Example:
    """All of a text, between the tokens that the model knows as beginning and end."""
    begins = tokenizer.begin and not text.startswith(tokenizer.begin)
    tokens = tokenizer.encode(tokenizer.begin + text if begins else text)
    if not tokens:
        raise ValueError("the model's tokenizer makes no token of the text")
    if tokens[-1] not in tokenizer.stop_ids:
        tokens = [*tokens, tokenizer.stop_ids[0]]
    return Example(tokens, list(range(len(tokens) - 1)))
