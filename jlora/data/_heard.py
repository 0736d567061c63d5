"""Whether a chat template wrote all that a row says: what it leaves out would be lost unseen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jlora import _words
from jlora.data._messages import REASONING, text_of


class Renders(Protocol):
    """What is asked of a tokenizer here."""

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        """The text of the conversation in the model's chat template."""
        ...


def check_turn(
    tokenizer: Renders, messages: Sequence[Mapping[str, Any]], shown: str, written: str
) -> None:
    """Nothing, if the template's text ``shown`` says what the last message has beside its content.

    Reasoning that stands in ``written``, which is what is learned, needs no other proof.

    Raises:
        ValueError: naming the message and the key that the template leaves out.
    """
    message = messages[-1]
    for key in ("tool_calls", REASONING):
        if key in message and not (key == REASONING and message[key].strip() in written):
            without = {name: value for name, value in message.items() if name != key}
            _compare(tokenizer, [*messages[:-1], without], shown, len(messages), key)


def check_whole(tokenizer: Renders, messages: Sequence[Mapping[str, Any]], written: str) -> None:
    """Nothing, if the text ``written`` says what all messages say.

    Raises:
        ValueError: naming the message and the key that the template leaves out.
    """
    if "tools" in messages[0]:
        without = {name: value for name, value in messages[0].items() if name != "tools"}
        _compare(tokenizer, [without, *messages[1:]], written, 0, "tools")
    for number, message in enumerate(messages, start=1):
        if "name" in message and message["role"] != "tool":
            others = {**message, "name": f"not-{message['name']}"}
            _compare(tokenizer, _with(messages, number, others), written, number, "name")
        content = text_of(message).strip()
        shown = content in written or json.dumps(content, ensure_ascii=False)[1:-1] in written
        if message["role"] != "assistant" and not shown:
            others = {**message, "content": f"not {content}"}
            _compare(tokenizer, _with(messages, number, others), written, number, "content")


def _with(messages: Sequence[Any], number: int, message: Any) -> list[Any]:
    return [*messages[: number - 1], message, *messages[number:]]


def _compare(
    tokenizer: Renders, changed: Sequence[Mapping[str, Any]], written: str, number: int, key: str
) -> None:
    """Raises a ValueError where another row is written in the very same way."""
    try:
        same = tokenizer.render(changed) == written
    except ValueError:  # the template asks for what was changed
        return
    if same:
        where = f"message {number}: " if number else ""
        it = f" ({_words.one_line(changed[number - 1]['role'], 40)})" if number else ""
        raise ValueError(
            f"{where}the model's chat template leaves {key!r}{it} out. Take it out of the row, "
            "say it in a 'content', or give another template"
        )
