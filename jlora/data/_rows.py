"""A person's rows: JSON lines into conversations, or one error that names every bad line."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jlora import _words

# A conversation: {"role": "system" | "user" | "assistant", "content": text}, the assistant last.
Messages = list[dict[str, str]]

_ROLES = ("system", "user", "assistant")
_EXPECTED = (
    "Expected one JSON object a line, UTF-8: "
    '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}, '
    '{"prompt": ..., "completion": ...} or {"instruction": ..., "input": ..., "output": ...}'
)
_SHOWN = 5  # bad lines that an error spells out


def read_rows(path: str | Path) -> list[Messages]:
    """The conversations of a JSONL file, one a line.

    A row holds ``messages``, or ``prompt`` and ``completion``, or ``instruction``, ``output`` and
    perhaps ``input``. Other keys are ignored.

    Args:
        path: of the file, UTF-8.

    Raises:
        ValueError: when the file is missing, empty or no text, or when lines can't be used: every
            one is counted, the first few are named.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import jlora
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "rows.jsonl")
        ...     _ = path.write_text('{"prompt": "2 + 2", "completion": "4"}')
        ...     jlora.data.read_rows(path)
        [[{'role': 'user', 'content': '2 + 2'}, {'role': 'assistant', 'content': '4'}]]
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text (byte {error.start}). {_EXPECTED}") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}. {_EXPECTED}") from None
    if "\0" in text:
        raise ValueError(f"{path} is no text: it holds zero bytes. {_EXPECTED}")
    if not text.strip():
        raise ValueError(f"{path} is empty. {_EXPECTED}")
    lines = text.split("\n")
    while not lines[-1].strip():
        lines.pop()
    rows: list[Messages] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise ValueError(
            f"{path}: {len(problems)} of {len(lines)} lines can't be used:"
            f"{_words.first_few(problems, _SHOWN)}\n{_EXPECTED}"
        )
    return rows


def hold_out(
    rows: Sequence[Messages], count: int, *, seed: int
) -> tuple[list[Messages], list[Messages]]:
    """The rows as (train, held out): ``count`` random ones held out, none of them also in train.

    Args:
        rows: conversations.
        count: how many to hold out.
        seed: another seed holds out others.

    Raises:
        ValueError: when nothing would be left to train on.

    Example:
        >>> import jlora
        >>> answer = {"role": "assistant", "content": "yes"}
        >>> rows = [[{"role": "user", "content": f"Is {n} a number?"}, answer] for n in range(10)]
        >>> train, held_out = jlora.data.hold_out(rows, 2, seed=0)
        >>> len(train), len(held_out)
        (8, 2)
    """
    rng = random.Random(f"{seed}/hold out")
    chosen = set(sorted(range(len(rows)), key=lambda _: rng.random())[:count])
    held_out = [row for index, row in enumerate(rows) if index in chosen]
    asked = {_key(row) for row in held_out}
    train = [row for row in rows if _key(row) not in asked]
    if not train:
        raise ValueError(
            f"{len(rows)} rows, {count} of them held out for evaluation, leave none to train on: "
            "give more distinct rows, or hold out fewer"
        )
    return train, held_out


def _key(row: Messages) -> str:
    return json.dumps(row[:-1])


def _row(line: str) -> Messages:
    if not line.strip():
        raise ValueError("empty")
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {_kind(row)} where an object was expected")
    if "messages" in row:
        return _conversation(row["messages"])
    if "prompt" in row or "completion" in row:
        return _pair(_text(row, "prompt"), _text(row, "completion"))
    if "instruction" in row or "output" in row:
        instruction, output = _text(row, "instruction"), _text(row, "output")
        context = _text(row, "input", empty=True) if row.get("input") is not None else ""
        return _pair(f"{instruction}\n\n{context}" if context.strip() else instruction, output)
    raise ValueError(f"no known keys, only {sorted(row)}" if row else "an object without keys")


def _pair(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _conversation(messages: Any) -> Messages:
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' is no list of messages, or an empty one")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"message {index + 1} is a {_kind(message)}, not an object")
        role = message.get("role")
        if role not in _ROLES:
            raise ValueError(f"message {index + 1} has the role {role!r}, not one of {_ROLES}")
        try:
            _text(message, "content")
        except ValueError as error:
            raise ValueError(f"message {index + 1}: {error}") from None
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message is the {messages[-1]['role']}'s, not the assistant's")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _text(row: dict[str, Any], key: str, *, empty: bool = False) -> str:
    if key not in row:
        raise ValueError(f"{key!r} is missing (found {sorted(row)})")
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is a {_kind(value)}, not text")
    if not empty and not value.strip():
        raise ValueError(f"{key!r} is empty")
    return value


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
