"""The tables of a command's flags, out of its own --help."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

from jlora.__main__ import main

# "    --flag VALUE   what it does", or "  WHAT   what it is"
LINE = re.compile(r"^ {2}(\S.*?)(?: {2,}(\S.*))?$")
# the end of a text: (default: 8), (8), (the adapter's own)
DEFAULT = re.compile(r"^(.*?) ?\((?:default: )?([^()]*(?:\([^()]*\))?[^()]*)\)$")
# A word for the values that a flag takes, where --help says one.
VALUES = {"STR": "text", "INT": "number", "FLOAT": "number", "[STR [STR ...]]": "text ..."}
NOTHING = ("", "''", "False")


class Flag(NamedTuple):
    """One line of a command's help."""

    name: str  # with the other way to write it: --stream, --no-stream
    value: str
    text: str
    default: str


def table(command: str, first: str = "", until: str = "") -> str:
    """The flags of a command as a table, from one to before another where they are named."""
    chosen = flags(command)
    names = [flag.name.split(",")[0] for flag in chosen]
    for name in filter(None, (first, until)):
        if name not in names:
            raise ValueError(f"{command} has no {name}: expected one of {', '.join(names)}")
    chosen = chosen[names.index(first) if first else 0 : names.index(until) if until else None]
    head, width = ["flag", "what it does", "default"], 3 if any(f.default for f in chosen) else 2
    rows = [head, ["---"] * 3, *map(_row, chosen)]
    return "".join(f"| {' | '.join(row[:width])} |\n" for row in rows)


@functools.cache
def flags(command: str) -> list[Flag]:
    """Every flag that the command's --help names, in its order."""
    told = io.StringIO()
    wide = mock.patch.dict(os.environ, {"COLUMNS": "2000", "NO_COLOR": "1"})
    with wide, contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return [_flag(name, text) for name, text in _lines(told.getvalue()) if name != "-h, --help"]


def _lines(told: str) -> Iterator[tuple[str, str]]:
    """(what stands on the left, what it does); a text may begin on a line of its own."""
    name = ""
    for line in told.splitlines():
        inner = line.strip("│─╭╮╰╯").rstrip()
        inner = f" {inner}" if line.startswith("│") else inner
        if name and (text := re.match(r"^ {10,}(\S.*)$", inner)):
            yield name, text[1]
            name = ""
        elif found := LINE.match(inner):
            if found[2] or found[1] == name:
                yield found[1], found[2]
                name = ""
            else:
                name = found[1]


def _flag(left: str, text: str) -> Flag:
    names, _, value = left.partition(" ") if "," not in left.split(" ")[0] else (left, "", "")
    default, named = "", True
    while named and (found := DEFAULT.match(text)):
        text, last = found[1], found[2].removeprefix("default:").strip()
        default, named = ("" if last in NOTHING else last), last in NOTHING
    choice = ", ".join(filter(None, value.strip("{}").split(","))) if "{" in value else value
    return Flag(names, VALUES.get(choice, choice), text, default)


def _row(its: Flag) -> list[str]:
    """The flag and its values, what it does, its default: as code where that is one word."""
    default = _cell(its.default) if " " in its.default else _code(its.default)
    return [f"{_code(its.name)} {its.value}".strip(), _cell(its.text), default]


def _cell(text: str) -> str:
    """Text in a cell of Markdown, its flags as code."""
    return re.sub(r"(?<![\w`])--[a-z][\w-]*", r"`\g<0>`", text.replace("|", "\\|"))


def _code(text: str) -> str:
    return "`{}`".format(text.replace("|", "\\|")) if text else ""
