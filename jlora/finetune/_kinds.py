"""How settings that are no plain number or word are written on a command line."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from jlora import _files
from jlora._sizes import sizes

UNSHOWN = tyro.conf.arg(help_behavior_hint="")  # a default that says nothing


class Range(NamedTuple):
    """The numbers that a setting may be, both ends included."""

    least: float = -math.inf
    most: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether the value is within; what is no number is not."""
        return self.least <= value <= self.most

    def __str__(self) -> str:
        ends = {"at least": self.least, "at most": self.most}
        return " and ".join(f"{word} {end:g}" for word, end in ends.items() if math.isfinite(end))


def whole_numbers(text: str) -> tuple[int, ...]:
    """``0-2,5`` as ``(0, 1, 2, 5)``."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first + last) > 12:
            raise ValueError(f"{text!r}: expected whole numbers such as 0-2,5")
        if int(last or first) - int(first) > 10**6:
            raise ValueError(f"{text!r}: expected fewer than a million numbers")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def by_pattern(text: str) -> dict[str, Any]:
    """A JSON object as a dict."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f'{text!r}: expected a JSON object such as {{"q_proj": 4}}')
    return value


def names(text: str) -> dict[str, str]:
    """``prompt=question,completion=answer`` as a dict."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise ValueError(f"{text!r}: expected names such as prompt=question,completion=answer")
    return {name.strip(): value.strip() for name, _, value in pairs}


def words(text: str) -> tuple[str, ...]:
    """``no,yes`` as ``("no", "yes")``."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise ValueError(f"{text!r}: expected different words such as no,yes")
    return found


def template(text: str) -> str:
    """What is written in the file of this name; a template itself stays as it is."""
    if not text or "{%" in text or "{{" in text:
        return text
    _files.require_regular(Path(text))
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{text} can't be read: {error}") from None


def day(text: str) -> str:
    """A date such as 2026-11-27."""
    try:
        return datetime.date.fromisoformat(text).isoformat() if text else ""
    except ValueError:
        raise ValueError(f"{text!r}: expected a date such as 2026-11-27") from None


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r}: expected a whole number") from None


def _joined(values: Any) -> str:
    return ",".join(map(str, values))


def _pairs(values: Any) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def _spec(
    read: Callable[[str], Any], write: Callable[[Any], str], metavar: str
) -> PrimitiveConstructorSpec[Any]:
    """One word on the command line, by a reader and a writer; nothing is written for None.

    What can't be read is kept as its error: all of them are told at once, by the flags' names.
    """

    def read_or_error(args: list[str]) -> Any:
        try:
            return read(args[0])
        except ValueError as error:
            return error

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read_or_error,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value) if value else ""],
    )


NAMES = _spec(names, _pairs, "KEY=KEY,...")
SIZES = _spec(sizes, _pairs, "AXIS=N,...")
WORDS = _spec(words, _joined, "WORD,...")
TEMPLATE = _spec(template, str, "FILE")
DAY = _spec(day, str, "DAY")
STEPS = _spec(_count, str, "INT")
LAYERS = _spec(whole_numbers, _joined, "0-5,8")
JSON = _spec(by_pattern, json.dumps, "JSON")
PATTERN = _spec(str, lambda value: value if isinstance(value, str) else "|".join(value), "PATTERN")

# The fields of LoraConfig that are flags: what --help says, and how they are written.
OF_LORA: dict[str, tuple[str, Any]] = {
    "rank": ("rank of A B", int),
    "alpha": ("A B is multiplied by alpha / rank", float),
    "rslora": ("multiply A B by alpha / sqrt(rank) instead", bool),
    "method": (
        "lora; dora: a trained magnitude for each output beside it; or qalora: merges into Q4_1 "
        "and Q5_1 without loss",
        str,
    ),
    "options": ("the method's own settings, as JSON", JSON),
    "dropout": ("share of A's inputs left out in training", float),
    "bias": (
        "biases that train whole: none, adapted or all; or lora: a bias on each B",
        str,
    ),
    "train": ("regular expression: further weights that train whole", PATTERN),
    "targets": ("regular expression: which weights get an adapter; or all-linear", PATTERN),
    "exclude": ("regular expression: which of these get none", PATTERN),
    "layers": ("only these layers get an adapter, as 0-5,8", LAYERS),
    "rank_pattern": (
        'other ranks by pattern, as {"down_proj": 16}; a list has one for each layer',
        JSON,
    ),
    "alpha_pattern": ("other alphas in the same form", JSON),
    "tokens": ('rows of the embedding that train, as {"embed": [5, 17]}', JSON),
}
