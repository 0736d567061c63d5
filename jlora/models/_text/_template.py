"""A conversation in the form that its model's template takes, and written by it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jlora._words import one_line
from jlora.models._text._renderer import RefusedError, Rendered, rendered

Message = Mapping[str, Any]

# For models that have no template: base models, above all. It needs no special token but the end.
DEFAULT = """\
{{- bos_token }}
{%- for message in messages %}
{{- '### ' + message['role'] | capitalize + '\\n' + message['content'] }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Assistant\\n' }}{% endif %}"""

REASONING = "reasoning_content"  # a message's, in rows; templates know it by one of these names
_REASONING_NAMES = (REASONING, "thinking", "reasoning")
_OF_ROWS_ALONE = ("weight", "tools")


def written(
    template: str,
    messages: Sequence[Message],
    *,
    special: Mapping[str, str],
    now: str,
    add_generation_prompt: bool = False,
) -> Rendered:
    """The conversation as the template writes it.

    What differs between templates is tried in turn: whether the arguments of tool calls are objects
    or their JSON, and whether a system message stands at the head of the first user message. Tools
    that the model may call are the first message's ``tools``.

    Raises:
        ValueError: when a message has no role, or the template refuses the messages in each form or
            takes too long.
    """
    _check(messages)
    takes_text, takes_parts = _contents(template, tuple(special.items()), now)
    developer = "system" if "developer" not in template else "developer"
    first: RefusedError | None = None
    for attempt in _attempts([_of_template(message, template) for message in messages]):
        for message in attempt:
            message["content"] = _content(message["content"], takes_text, takes_parts)
            if message["role"] == "developer":
                message["role"] = developer
        variables = {
            **special,
            "messages": attempt,
            "tools": (messages[0].get("tools") if messages else None) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            result = rendered(template, variables, now=now)
        except RefusedError as error:
            first = first or error
            continue
        if not any(str(given) in result.text for given in _arguments(attempt)):
            return result
        first = first or RefusedError("it writes tool calls' arguments as Python, not as JSON")
    assert first is not None
    raise first


def _check(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"message {number} is {one_line(repr(message), 60)}: expected "
                '{"role": ..., "content": ...}'
            )


def text_of(content: Any) -> str:
    """A message's content as one text: parts stand on lines of their own."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or ())


def _attempts(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages in each form that a template may ask for, the usual one first."""
    forms = [messages]
    if any(message.get("tool_calls") for message in messages):
        forms.append([_with_json_arguments(message) for message in messages])
    roles = [message["role"] for message in messages[:2]]
    if roles in (["system", "user"], ["developer", "user"]):
        forms += [_folded(form) for form in forms]
    for form in forms:
        yield [dict(message) for message in form]


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, their system message at the head of the first user's."""
    system, user, *rest = messages
    content = f"{text_of(system['content'])}\n\n{text_of(user['content'])}"
    return [{**user, "content": content}, *rest]


def _with_json_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {**call, "function": {**function, "arguments": _json(function["arguments"])}}
        for call in message.get("tool_calls") or ()
        for function in (call["function"],)
    ]
    return {**message, "tool_calls": calls} if calls else message


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _arguments(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """The arguments of tool calls that are objects, and not empty."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            arguments = call["function"]["arguments"]
            if isinstance(arguments, dict) and arguments:
                yield arguments


def _of_template(message: Message, template: str) -> dict[str, Any]:
    """What the template is to see of a message: reasoning under the name that it knows."""
    seen = {key: value for key, value in message.items() if key not in _OF_ROWS_ALONE}
    seen.setdefault("content", "")
    if REASONING in seen:
        seen[_reasoning_name(template)] = seen.pop(REASONING)
    return seen


@functools.lru_cache(maxsize=16)
def _reasoning_name(template: str) -> str:
    for name in _REASONING_NAMES:
        if re.search(rf"message\.{name}\b|['\"]{name}['\"]", template):
            return name
    return REASONING


_PROBES = ("first-part-9d1f", "second-part-4c7a")


@functools.lru_cache(maxsize=16)
def _contents(template: str, special: tuple[tuple[str, str], ...], now: str) -> tuple[bool, bool]:
    """Whether the template takes a content that is text, and one that is a list of parts."""

    def shows(content: Any) -> bool:
        messages = [{"role": "user", "content": content}]
        variables = {**dict(special), "messages": messages, "tools": None, "documents": None}
        try:
            text = rendered(template, variables, now=now).text
        except RefusedError:
            return False
        return _PROBES[0] in text and "'text'" not in text

    text, parts = shows(_PROBES[0]), shows([{"type": "text", "text": each} for each in _PROBES])
    return text or not parts, parts


def _content(content: Any, takes_text: bool, takes_parts: bool) -> Any:
    if isinstance(content, str):
        return content if takes_text else [{"type": "text", "text": content}]
    return list(content or ()) if takes_parts and content else text_of(content)
