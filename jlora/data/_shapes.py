"""The shapes that people's rows have, and the conversation in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jlora import _words
from jlora.data._messages import (
    NO_TEXT,
    Messages,
    Notes,
    checked_messages,
    conversation,
    found_keys,
    from_json,
    kind,
    plain_text,
    refuse_what_is_no_text,
    text,
    tools,
)

Row = dict[str, Any]


class Shape(NamedTuple):
    """One way to write a conversation down."""

    keys: tuple[str, ...]  # a row with one of them has this shape
    also: tuple[str, ...]  # what it may have beside them
    read: Callable[[Row, Notes], Messages]


def conversation_of(row: Any, columns: Mapping[str, str], notes: Notes) -> Messages:
    """The conversation that a row holds.

    Args:
        row: what was read.
        columns: our names of keys to the row's own.
        notes: counts what is left aside.

    Raises:
        ValueError: when it can't be used, with the key that is the reason.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {kind(row)} where an object was expected")
    if problem := _unusable(row):
        raise ValueError(problem)
    row = renamed(row, columns)
    given = {key: value for key, value in row.items() if value is not None}
    for shape in SHAPES:
        if any(key in given for key in shape.keys):
            refuse_what_is_no_text(given)
            known = {*shape.keys, *shape.also, "tools", *NO_TEXT}
            notes.update(f"{key!r}" for key in sorted(given.keys() - known))
            return _with_tools(shape.read(given, notes), given)
    raise ValueError(f"no known keys, only {found_keys(row)}" if row else "an object without keys")


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with our names of keys.

    Raises:
        ValueError: when a key that ``columns`` names is missing.
    """
    if missing := [own for own in columns.values() if own not in row]:
        raise ValueError(f"{missing[0]!r} is missing or empty (found {found_keys(row)})")
    rest = {key: value for key, value in row.items() if key not in (*columns, *columns.values())}
    return {**rest, **{ours: row[own] for ours, own in columns.items()}}


def _with_tools(messages: Messages, given: Row) -> Messages:
    offered = tools(given["tools"]) if given.get("tools") else []
    return [{**messages[0], "tools": offered}, *messages[1:]] if offered else messages


def _with_system(messages: Messages, given: Row) -> Messages:
    """The messages, a row's own system message before them."""
    if not given.get("system"):
        return messages
    if messages[0]["role"] == "system":
        raise ValueError("'system' and a first message of the system: keep one")
    return [{"role": "system", "content": text(given, "system")}, *messages]


def _not_trained(messages: Messages) -> Messages:
    """The messages as what was said before: their answers are read, not learned."""
    return [{**m, "weight": 0} if m["role"] == "assistant" else m for m in messages]


def _said(given: Row, key: str, role: str, notes: Notes) -> Messages:
    """What a key holds: a text of the role, or messages."""
    if isinstance(given.get(key), list):
        return checked_messages(given[key], key, notes)
    return [{"role": role, "content": text(given, key)}]


def _messages(given: Row, notes: Notes) -> Messages:
    messages = from_json(given["messages"], "'messages'")
    return _with_system(conversation(messages, "messages", notes), given)


# What ShareGPT's data sets call those who speak
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
    "system": "system",
    "function_call": "assistant",
}


def _sharegpt(given: Row, notes: Notes) -> Messages:
    turns = from_json(given["conversations"], "'conversations'")
    if not isinstance(turns, list) or not turns:
        raise ValueError("'conversations' is no list of messages, or an empty one")
    messages = [_turn(turn, number) for number, turn in enumerate(turns, start=1)]
    return _with_system(conversation(messages, "conversations", notes), given)


def _turn(turn: Any, number: int) -> Any:
    """A message of a ShareGPT row; one that has a role already is left as it is."""
    if not isinstance(turn, dict) or turn.get("role") is not None:
        return turn
    speaker = turn.get("from")
    if not (isinstance(speaker, str) and speaker in _SPEAKERS):
        raise ValueError(
            f"message {number} is from {_words.one_line(repr(speaker), 60)}, not from one of "
            f"{tuple(_SPEAKERS)}"
        )
    message = {key: value for key, value in turn.items() if key not in ("from", "value")}
    message |= {"role": _SPEAKERS[speaker], "content": turn.get("value")}
    if speaker == "function_call":
        calls = from_json(turn.get("value"), f"message {number}")
        calls = calls if isinstance(calls, list) else [calls]
        return {**message, "content": None, "tool_calls": calls}
    return message


def _preference(given: Row, notes: Notes) -> Messages:
    notes["'rejected' (training is on 'chosen')"] += 1
    if isinstance(given.get("chosen"), str):
        asked = _not_trained(_said(given, "prompt", "user", notes))
        return _with_system(
            [*asked, {"role": "assistant", "content": text(given, "chosen")}], given
        )
    chosen = conversation(given.get("chosen"), "chosen", notes)
    if given.get("prompt"):
        asked = _not_trained(_said(given, "prompt", "user", notes))
        if _plain(chosen[: len(asked)]) == _plain(asked):  # it is told again
            chosen = chosen[len(asked) :]
        return _with_system([*asked, *chosen], given)
    rejected = given.get("rejected")
    shared = 0
    if isinstance(rejected, list):
        other = checked_messages(rejected, "rejected", notes)
        for one, two in zip(chosen, other, strict=False):
            if one != two:
                break
            shared += 1
    shared = min(shared, len(chosen) - 1)
    return _with_system([*_not_trained(chosen[:shared]), *chosen[shared:]], given)


def _plain(messages: Messages) -> list[tuple[Any, Any]]:
    return [(message["role"], message["content"]) for message in messages]


def _prompt_and_completion(given: Row, notes: Notes) -> Messages:
    asked = _not_trained(_said(given, "prompt", "user", notes))
    messages = [*asked, *_said(given, "completion", "assistant", notes)]
    return _with_system(conversation(messages, "completion", notes), given)


def _instruction(given: Row, _: Notes) -> Messages:
    instruction, output = text(given, "instruction"), text(given, "output")
    context = text(given, "input", empty=True) if "input" in given else ""
    asked = f"{instruction}\n\n{context}" if context.strip() else instruction
    pairs = [*_history(given), (asked, output)]
    messages = [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    return _with_system(messages, given)


def _history(given: Row) -> Iterator[tuple[str, str]]:
    """The questions and answers before an Alpaca row's own."""
    history = from_json(given.get("history") or [], "'history'")
    if not isinstance(history, list):
        raise ValueError(f"'history' is a {kind(history)}, not a list of pairs")
    for number, pair in enumerate(history, start=1):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
        ):
            raise ValueError(f"entry {number} of 'history' is no pair of question and answer")
        yield pair[0], pair[1]


def _text(given: Row, _: Notes) -> Messages:
    return plain_text(text(given, "text"))


SHAPES = (
    Shape(("messages",), ("system",), _messages),
    Shape(("conversations",), ("system",), _sharegpt),
    Shape(("chosen",), ("prompt", "rejected", "system"), _preference),
    Shape(("prompt", "completion"), ("system",), _prompt_and_completion),
    Shape(("instruction", "output"), ("input", "system", "history"), _instruction),
    Shape(("text",), (), _text),
)
_OF_SHAPES = [key for shape in SHAPES for key in (*shape.keys, *shape.also)]
KEYS = tuple(dict.fromkeys((*_OF_SHAPES, "tools")))

_DEEPEST = 64


def _unusable(row: Any) -> str | None:
    """What makes a value no text that can be written down again, wherever in it."""
    waiting = [(row, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEEPEST:
            return f"nested more than {_DEEPEST} deep"
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            waiting += [(part, depth + 1) for part in value]
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return f"half a character (a lone surrogate) after {value[: error.start][-20:]!r}"
    return None
