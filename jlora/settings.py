"""A frozen dataclass as command-line flags: its fields are the flags, their defaults shown in help.

``class Settings: steps: int = setting(100, "updates", least=1)``;
``given = parse(Settings, argv, description, switches)``; ``check(Settings, given)``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


def setting(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field with what --help says of it and the values that it may have."""
    metadata = {"text": text, "least": least, "most": most, "choices": choices}
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
                type=type(field.default),
                choices=meta["choices"],
                metavar=None if meta["choices"] else "",
                help=f"{meta['text']} ({field.default})".replace("%", "%%"),
            )
    for name, text in switches.items():
        parser.add_argument(flag(name), action="store_true", help=text)
    return vars(parser.parse_args(argv))


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
