"""One answer of a conversation: the tokens up to its end, and the places where it is predicted."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jlora.data import _heard
from jlora.data._messages import REASONING, Messages, text_of

Span = tuple[int, int]  # from the first letter to the one behind the last


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

    def pieces(self, text: str) -> tuple[list[int], list[Span]]:
        """These tokens, and where each begins and ends in the text, in letters."""
        ...

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        """The text of the conversation in the model's chat template."""
        ...

    def rendered(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span] | None]:
        """What `render` gives, and what its ``{% generation %}`` encloses, if it has that."""
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


def turn_of(
    messages: Messages, tokenizer: Tokenizer, train_reasoning: bool, *, last: bool
) -> Example:
    """The conversation up to the end of its last answer, and the places of that answer."""
    prompt = tokenizer.render(messages[:-1], add_generation_prompt=True)
    shown, enclosed = tokenizer.rendered(messages)
    written, generated = _after_prompt(prompt, shown, enclosed, messages)
    _heard.check_turn(tokenizer, messages, shown, written)
    if last:
        _heard.check_whole(tokenizer, messages, shown)
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
) -> tuple[list[int], list[Span]]:
    """The tokens of ``written`` after those of the prompt, and where each stands.

    Raises:
        ValueError: when no letter can stand before the answer without becoming a part of it.
    """
    whole, places = tokenizer.pieces(written)
    if whole[: len(before)] == before:
        return whole[len(before) :], places[len(before) :]
    # A token spans both: the answer is read by itself, as a text that goes on.
    border = len(prompt)
    for anchor in string.printable:
        alone = tokenizer.encode(anchor)
        both, places = tokenizer.pieces(anchor + written[border:])
        if both[: len(alone)] == alone:
            moved = border - len(anchor)
            return both[len(alone) :], [
                (start + moved, end + moved) for start, end in places[len(alone) :]
            ]
    raise ValueError(f"the tokens of {written[border:][:60]!r} can't be told from those before it")


_OPEN, _CLOSE = "<think>", "</think>"
_THOUGHT = re.compile(rf"\s*{_OPEN}(.*?){_CLOSE}", re.DOTALL)


def reasoning_of(message: Mapping[str, Any]) -> str:
    """The reasoning in an answer, whether it has a key of its own or stands in the content."""
    if message["role"] != "assistant":
        return ""
    found = _THOUGHT.match(text_of(message))
    return message.get(REASONING) or (found[1].strip() if found else "")


def _hidden(message: Mapping[str, Any], written: str, start: int) -> Span:
    """Where the reasoning stands in the text, after ``start``."""
    reasoning = reasoning_of(message).strip()
    at = written.find(reasoning, start) if reasoning else -1
    return (at, at + len(reasoning)) if at >= 0 else (start, start)


def _meet(place: Span, span: Span) -> bool:
    return place[0] < span[1] and span[0] < place[1]


def _inside(place: Span, span: Span) -> bool:
    return span[0] <= place[0] < place[1] <= span[1]


def _after_prompt(
    prompt: str, shown: str, enclosed: list[Span] | None, messages: Messages
) -> tuple[str, list[Span] | None]:
    """The text with an answer that begins where the prompt ends, and what of it is generated.

    Some prompts open the reasoning, and the template leaves that out of the answers that it writes:
    then the reasoning of the row, if it has any, stands there, and the mark that closes it.

    Raises:
        ValueError: when the prompt is no beginning of the text for another reason.
    """
    if shown.startswith(prompt):
        return shown, enclosed
    pairs = enumerate(zip(prompt, shown, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(prompt), len(shown)))
    opened = prompt.rfind(_OPEN)
    if opened <= prompt.rfind(_CLOSE) or same < opened:
        raise ValueError(
            f"the model's chat template asks for message {len(messages)} with "
            f"{prompt[same:][:60]!r}, but writes {shown[same:][:60]!r} there when it has the "
            "answer, so its answers can't be told from its prompts. Give another template, or "
            "leave the reasoning out of the row if it has any"
        )
    rest = shown[same:]
    if _CLOSE not in rest:
        rest = f"{reasoning_of(messages[-1])}\n{_CLOSE}\n\n{rest}"
    written = prompt + rest
    moved = len(written) - len(shown)
    if enclosed is not None:
        later = [(start, end) for start, end in enclosed if end > same]
        enclosed = [
            (start + moved if start > same else len(prompt), end + moved) for start, end in later
        ]
    return written, enclosed
