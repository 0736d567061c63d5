"""Conversations into tokens, with the positions at which the answer is to be predicted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jlora.data import _heard
from jlora.data._messages import REASONING, Messages, is_plain_text, text_of


class Tokenizer(Protocol):
    """What `encode` asks of a tokenizer."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """The tokens that end a turn."""
        ...

    @property
    def begin(self) -> str:
        """The special token that stands before every text, or nothing."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of the text."""
        ...

    def pieces(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """These tokens, and where each begins and ends in the text, in letters."""
        ...

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        """The text of the conversation in the model's chat template."""
        ...

    def rendered(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """What `render` gives, and what its ``{% generation %}`` encloses, if it has that."""
        ...


class Example(NamedTuple):
    """One conversation as the model reads it."""

    tokens: list[int]
    answers: list[int]  # positions whose next token belongs to an answer


@dataclasses.dataclass(frozen=True)
class EncodeReport:
    """What became of the rows."""

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
    rows: Sequence[Messages],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    train_reasoning: bool = False,
) -> tuple[list[Example], EncodeReport]:
    """The examples of at most ``max_length`` tokens, and a report of what was cut.

    Each turn of the assistant is an answer, from its first token to the one that ends the turn; or
    what the template's ``{% generation %}`` encloses. What stands before an answer is, token for
    token, what the model reads when it generates one: a token that would span both is split there.
    Where a template writes a turn in another way once others follow, or where such a split would
    fall into an earlier turn, each turn becomes an example of its own.

    Args:
        rows: from `read_rows`.
        tokenizer: a model's.
        max_length: of an example, in tokens.
        train_reasoning: the reasoning in an answer is trained too, not only read.

    Raises:
        ValueError: naming the row that the model's chat template does not take, or leaves a part
            of out; or when the limit leaves no answer at all.
    """
    examples: list[Example] = []
    cut = dropped = made = reasoning = 0
    for number, row in enumerate(rows, start=1):
        try:
            its = _examples(row, tokenizer, train_reasoning)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        made += len(its)
        reasoning += not train_reasoning and any(map(_reasoning, row))
        for tokens, answers in its:
            if len(tokens) > max_length:
                tokens = tokens[:max_length]
                answers = [position for position in answers if position + 1 < max_length]
                cut, dropped = (cut + 1, dropped) if answers else (cut, dropped + 1)
            if answers:
                examples.append(Example(tokens, answers))
    report = EncodeReport(len(rows), cut, dropped, max_length, made, reasoning)
    if not examples:
        raise ValueError(f"no row has an answer within the length limit: {report}")
    return examples, report


def answerable(
    rows: Sequence[Messages], tokenizer: Tokenizer, *, max_length: int
) -> list[Messages]:
    """The rows whose prompt leaves room for an answer within the limit.

    Raises:
        ValueError: when there is none.
    """
    lengths = [_prompt_length(row, tokenizer) for row in rows]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length < max_length]
    if not kept:
        raise ValueError(
            f"every held-out row has a prompt of at least {max_length} tokens "
            f"(the shortest has {min(lengths)}): raise the limit"
        )
    return kept


def _prompt_length(row: Messages, tokenizer: Tokenizer) -> int:
    if is_plain_text(row):
        return 0
    return len(tokenizer.encode(tokenizer.render(row[:-1], add_generation_prompt=True)))


def _examples(row: Messages, tokenizer: Tokenizer, train_reasoning: bool) -> list[Example]:
    """The row's turns, as many in one example as the template lets stand together."""
    if is_plain_text(row):
        return [_of_text(text_of(row[0]), tokenizer)]
    trained = [
        turn
        for turn, message in enumerate(row)
        if message["role"] == "assistant" and message.get("weight") != 0
    ]
    examples: list[Example] = []
    for turn in reversed(trained):
        messages = row[: turn + 1]
        tokens, answers = _turn(messages, tokenizer, train_reasoning, last=turn == trained[-1])
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


def _turn(
    messages: Messages, tokenizer: Tokenizer, train_reasoning: bool, *, last: bool
) -> Example:
    """The conversation up to the end of its last answer, and the places of that answer."""
    prompt = tokenizer.render(messages[:-1], add_generation_prompt=True)
    written, generated = tokenizer.rendered(messages)
    _heard.check_turn(tokenizer, messages, written)
    if last:
        _heard.check_whole(tokenizer, messages, written)
    if not written.startswith(prompt):
        raise ValueError(_differs(prompt, written, len(messages)))
    before = tokenizer.encode(prompt)
    answer, places = _continued(before, prompt, written, tokenizer)
    stops = [at for at, token in enumerate(answer) if token in tokenizer.stop_ids]
    if generated is None:
        chosen = list(range(stops[0] + 1 if stops else len(answer)))
    else:
        chosen = [at for at, place in enumerate(places) if any(_meet(place, g) for g in generated)]
    if not train_reasoning:
        hidden = _hidden(messages[-1], written, len(prompt))
        chosen = [at for at in chosen if not _inside(places[at], hidden)]
    if not chosen:
        return Example(before, [])
    answer = answer[: chosen[-1] + 1]  # what follows the last answer teaches nothing
    if not any(at in stops for at in chosen):  # the model must learn to stop all the same
        chosen.append(len(answer))
        answer.append(tokenizer.stop_ids[0])
    return Example(before + answer, [len(before) - 1 + at for at in chosen])


def _continued(
    before: list[int], prompt: str, written: str, tokenizer: Tokenizer
) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of ``written`` after those of the prompt, and where each stands."""
    whole, places = tokenizer.pieces(written)
    if whole[: len(before)] == before:
        return whole[len(before) :], places[len(before) :]
    # A token spans both: what it has of the answer is read as a text of its own.
    border = len(prompt)
    first = next((at for at, (start, _) in enumerate(places) if start >= border), len(places))
    until = places[first][0] if first < len(places) else len(written)
    split = _in_the_middle(written[border:until], tokenizer) if until > border else []
    return split + whole[first:], [(border, until)] * len(split) + places[first:]


# Letters that may stand before a text, so that it is read as one that goes on
_ANCHORS = ("\n", ".", "a", "0", "(")


def _in_the_middle(text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text that others come before: without the mark of a beginning."""
    for anchor in _ANCHORS:
        alone, both = tokenizer.encode(anchor), tokenizer.encode(anchor + text)
        if both[: len(alone)] == alone:
            return both[len(alone) :]
    return tokenizer.encode(text)


def _of_text(text: str, tokenizer: Tokenizer) -> Example:
    """All of a text, between the tokens that the model knows as beginning and end."""
    begins = tokenizer.begin and not text.startswith(tokenizer.begin)
    tokens = tokenizer.encode(tokenizer.begin + text if begins else text)
    if tokens[-1] not in tokenizer.stop_ids:
        tokens = [*tokens, tokenizer.stop_ids[0]]
    return Example(tokens, list(range(len(tokens) - 1)))


_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


def _reasoning(message: Mapping[str, Any]) -> str:
    """The reasoning in an answer, whether it has a key of its own or stands in the content."""
    if message["role"] != "assistant":
        return ""
    found = _THOUGHT.match(text_of(message))
    return message.get(REASONING) or (found[1].strip() if found else "")


def _hidden(message: Mapping[str, Any], written: str, start: int) -> tuple[int, int]:
    """Where the reasoning stands in the text, after ``start``."""
    reasoning = _reasoning(message).strip()
    at = written.find(reasoning, start) if reasoning else -1
    return (at, at + len(reasoning)) if at >= 0 else (start, start)


def _meet(place: tuple[int, int], span: tuple[int, int]) -> bool:
    return place[0] < span[1] and span[0] < place[1]


def _inside(place: tuple[int, int], span: tuple[int, int]) -> bool:
    return span[0] <= place[0] < place[1] <= span[1]


def _differs(prompt: str, written: str, number: int) -> str:
    """What to say of a template whose prompt is no beginning of what it writes of the answer."""
    same = next(
        (at for at, (a, b) in enumerate(zip(prompt, written, strict=False)) if a != b),
        min(len(prompt), len(written)),
    )
    return (
        f"the model's chat template asks for message {number} with {prompt[same:][:60]!r}, but "
        f"writes {written[same:][:60]!r} there when it has the answer, so its answers can't be "
        "told from its prompts. Give another template"
    )
