"""A frozen dataclass as command-line flags: its fields are the flags, their defaults shown in help.

``class Settings: steps: int = setting(100, "updates", least=1)``;
``given = parse(Settings, argv, description, switches)``; ``check(Settings, given)``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jlora import _files


def setting(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[str] | None = None,
    read: Callable[[str], Any] | None = None,
) -> Any:
    """A field with what --help says of it and the values that it may have.

    ``read`` makes the value of the flag's text, and raises a ValueError that says what it expected;
    without it the value is of the default's type.
    """
    metadata = {"text": text, "least": least, "most": most, "choices": choices, "read": read}
    return dataclasses.field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """How a field is written on the command line."""
    return "--" + name.replace("_", "-")


def parse(
    settings: type, argv: Sequence[str] | None, *, description: str, switches: Mapping[str, str]
) -> dict[str, Any]:
    """The flags that were given, and no others, so that a default can be told from a choice.

    Args:
        settings: a dataclass whose fields come from `setting`.
        argv: the arguments; the process's own if None.
        description: what --help begins with.
        switches: further flags without a value, with what --help says of them.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field in dataclasses.fields(settings):
        meta = field.metadata
        if isinstance(field.default, bool):
            parser.add_argument(flag(field.name), action="store_true", help=meta["text"])
        else:
            parser.add_argument(
                flag(field.name),
                type=_argument(meta["read"]) if meta["read"] else type(field.default),
                choices=meta["choices"],
                metavar=None if meta["choices"] else "",
                help=(meta["text"] + _shown(field.default)).replace("%", "%%"),
            )
    for name, text in switches.items():
        parser.add_argument(flag(name), action="store_true", help=text)
    return vars(parser.parse_args(argv))


def whole_numbers(text: str) -> list[int]:
    """``0-2,5`` as ``[0, 1, 2, 5]``, for `setting`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{text!r}: expected whole numbers such as 0-2,5")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def by_pattern(text: str) -> dict[str, Any]:
    """A JSON object as a dict, for `setting`."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f'{text!r}: expected a JSON object such as {{"q_proj": 4}}')
    return value


def names(text: str) -> dict[str, str]:
    """``prompt=question,completion=answer`` as a dict, for `setting`."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise ValueError(f"{text!r}: expected names such as prompt=question,completion=answer")
    return {name.strip(): value.strip() for name, _, value in pairs}


def text_of_file(path: str) -> str:
    """What is written in the file, for `setting`: the setting is the text, wherever it was."""
    _files.require_regular(Path(path))
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read: {error}") from None


def day(text: str) -> str:
    """A date such as 2026-11-27, for `setting`."""
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"{text!r}: expected a date such as 2026-11-27") from None


def _argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


def _shown(default: Any) -> str:
    return "" if default in (None, "") else f" ({default})"


def check(settings: type, given: Mapping[str, Any]) -> None:
    """Nothing, if every given value is within its bounds.

    Raises:
        ValueError: naming all that are not.
    """
    problems = []
    for field in dataclasses.fields(settings):
        value = given.get(field.name, field.default)
        least, most = field.metadata["least"], field.metadata["most"]
        if least is not None and not value >= least:
            problems.append(f"{flag(field.name)} is {value}: expected at least {least}")
        if most is not None and not value <= most:
            problems.append(f"{flag(field.name)} is {value}: expected at most {most}")
    if problems:
        raise ValueError("; ".join(problems))
