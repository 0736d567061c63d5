"""The messages of a conversation: what a row may say in them, checked and in one form."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jlora import _words

# A conversation: {"role": ..., "content": text}, the assistant's last. A content may also be a list
# of parts that are text. The first message may have "tools", an answer "tool_calls",
# "reasoning_content" and "weight": 0. A row of plain text is one message of the role "text".
Messages = list[dict[str, Any]]

# What was noticed in rows and left aside, and in how many.
Notes = collections.Counter[str]

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = "reasoning_content"
_REASONING_NAMES = (REASONING, "reasoning", "thinking")
_KNOWN = {"role", "content", "tool_calls", "tool_call_id", "name", "weight", *_REASONING_NAMES}
NO_TEXT = {"image", "images", "audio", "audios", "video", "videos"}
_OLD = {"function_call": "tool_calls", "functions": "tools"}
_TEXT_PARTS = ("text", "input_text", "output_text")


def plain_text(text: str) -> Messages:
    """A row that is trained on as a whole."""
    return [{"role": "text", "content": text}]


def is_plain_text(row: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the row is text that is no conversation."""
    return row[0]["role"] == "text"


def key_of(row: Any) -> str:
    """What two rows share that ask for the same."""
    if isinstance(row, Mapping):  # a text with a label
        return json.dumps({name: value for name, value in row.items() if name != "label"})
    return json.dumps(row if is_plain_text(row) else row[:-1])


def text_of(message: Mapping[str, Any]) -> str:
    """A message's content as one text: parts stand on lines of their own.

    Args:
        message: of a conversation.

    Example:
        >>> import jlora
        >>> parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "2 + 2?"}]
        >>> jlora.data.text_of({"role": "user", "content": parts})
        'What is\\n2 + 2?'
    """
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def without_reasoning(text: str) -> str:
    """An answer without the ``<think>...</think>`` before it, as a person reads it.

    Args:
        text: what a model wrote.

    Example:
        >>> import jlora
        >>> jlora.data.without_reasoning("<think>2 + 2 ...</think> 4")
        '4'
    """
    return text.rpartition("</think>")[2].strip()


def conversation(messages: Any, key: str, notes: Notes) -> Messages:
    """The messages in the form that `Messages` describes; the last is the assistant's.

    Raises:
        ValueError: naming the message and the key that can't be used.
    """
    checked = checked_messages(messages, key, notes)
    if checked[-1]["role"] != "assistant":
        raise ValueError(f"the last message is the {checked[-1]['role']}'s, not the assistant's")
    if all(m.get("weight") == 0 for m in checked if m["role"] == "assistant"):
        raise ValueError(
            "every message of the assistant has the weight 0: nothing is left to train"
        )
    return checked


def checked_messages(messages: Any, key: str, notes: Notes) -> Messages:
    """The messages in the form that `Messages` describes, whoever has the last word."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{key!r} is no list of messages, or an empty one")
    checked = []
    for number, message in enumerate(messages, start=1):
        try:
            checked.append(_message(message, notes))
        except ValueError as error:
            raise ValueError(f"message {number}{error}") from None
    return checked


def _message(message: Any, notes: Notes) -> dict[str, Any]:
    """One message; errors go on where "message 3" left off."""
    if not isinstance(message, dict):
        raise ValueError(f" is a {kind(message)}, not an object")
    given = {key: value for key, value in message.items() if value is not None}
    role = given.get("role")
    if role not in ROLES:
        raise ValueError(f" has the role {_words.one_line(repr(role), 60)}, not one of {ROLES}")
    try:
        refuse_what_is_no_text(given)
        notes.update(f"{key!r} of messages" for key in sorted(given.keys() - _KNOWN - NO_TEXT))
        calls = _tool_calls(given)
        checked = {"role": role, "content": _content(given, role, bool(calls))}
        if calls:
            if role != "assistant":
                raise ValueError(f"'tool_calls' are the assistant's, not the {role}'s")
            checked["tool_calls"] = calls
        for name in ("name", "tool_call_id"):
            if name in given:
                checked[name] = text(given, name)
        if reasoning := _reasoning(given):
            if role != "assistant":
                raise ValueError(f"{REASONING!r} is the assistant's, not the {role}'s")
            checked[REASONING] = reasoning
        if _weight(given) == 0 and role == "assistant":
            checked["weight"] = 0
        return checked
    except ValueError as error:
        raise ValueError(f": {error}") from None


def refuse_what_is_no_text(given: Mapping[str, Any]) -> None:
    """Raises a ValueError for keys that say something that no text can."""
    for key in sorted(NO_TEXT & given.keys()):
        if given[key]:
            raise ValueError(f"{key!r} can't be trained on: only text is")
    for key in sorted(_OLD.keys() & given.keys()):
        raise ValueError(f"{key!r} is not read any more: say {_OLD[key]!r}")


def _content(given: Mapping[str, Any], role: str, has_calls: bool) -> Any:
    content = given.get("content")
    if isinstance(content, list):
        parts = [_part(part, number) for number, part in enumerate(content, start=1)]
        joined = "\n".join(part["text"] for part in parts)
        content = parts if len(parts) > 1 and role != "assistant" and joined.strip() else joined
    if not content and (has_calls or role == "tool"):
        return ""
    if isinstance(content, list):
        return content
    return text(given if content is None else {"content": content}, "content")


def _part(part: Any, number: int) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise ValueError(f"part {number} of 'content' is a {kind(part)}, not an object")
    its = part.get("type", "text")
    if its not in _TEXT_PARTS:
        raise ValueError(
            f"part {number} of 'content' is of the type {_words.one_line(repr(its), 60)}: only "
            "text can be trained on"
        )
    return {"type": "text", "text": text(part, "text", empty=True)}


def _tool_calls(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = given.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError(f"'tool_calls' is a {kind(calls)}, not a list")
    return [_tool_call(call, number) for number, call in enumerate(calls, start=1)]


def _tool_call(call: Any, number: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"tool call {number} has no function with a name")
    arguments = from_json(function.get("arguments") or {}, f"arguments of tool call {number}")
    if not isinstance(arguments, dict):
        raise ValueError(
            f"the arguments of tool call {number} are a {kind(arguments)}, not an object"
        )
    its_id = {"id": call["id"]} if call.get("id") is not None else {}
    function = {"name": function["name"], "arguments": arguments}
    return {**its_id, "type": "function", "function": function}


def tools(value: Any) -> list[dict[str, Any]]:
    """What a row says of the tools that the model may call: a list, or its JSON.

    Raises:
        ValueError: when it is something else.
    """
    value = from_json(value, "'tools'")
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError("'tools' is no list of objects")
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in value
    ]


def _reasoning(given: Mapping[str, Any]) -> str:
    found = {name: given[name] for name in _REASONING_NAMES if given.get(name)}
    if len(set(map(str, found.values()))) > 1:
        raise ValueError(f"{' and '.join(map(repr, found))} say different things: keep one")
    return next((text(found, name) for name in found), "")


def _weight(given: Mapping[str, Any]) -> float:
    weight = given.get("weight", 1)
    if weight not in (0, 1):
        raise ValueError(f"'weight' is {_words.one_line(repr(weight), 60)}: expected 0 or 1")
    return weight


def from_json(value: Any, name: str) -> Any:
    """What a text stands for, where others write JSON into JSON; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"{name}: {_words.one_line(repr(value), 60)} is no JSON") from None


def text(row: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    """The text of the key.

    Raises:
        ValueError: when there is none.
    """
    if key not in row:
        raise ValueError(f"{key!r} is missing (found {found_keys(row)})")
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is a {kind(value)}, not text")
    if not empty and not value.strip():
        raise ValueError(f"{key!r} is empty")
    return value


def found_keys(row: Mapping[str, Any]) -> str:
    """The keys of a row, for an error."""
    return _words.one_line(f"{sorted(row)}", 160)


def kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
