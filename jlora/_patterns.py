"""Regular expressions out of files that others made: one that would never end is an error.

Python's own matcher has no time limit; the package ``regex`` has.
"""

from __future__ import annotations

import re
import time
from typing import Any

from jlora._requires import requires

SECONDS = 1.0  # of computing, for all that one pattern is held against
_SIMPLE = re.compile(r"(\\.|[^\\*+?{(|])*")  # nothing repeats, nothing branches

_spent: dict[str, float] = {}


def full(pattern: str, text: str) -> Any:
    """The match of the whole text with the pattern, or None.

    Raises:
        ValueError: when it is no regular expression, or takes too long.
    """
    return _match(pattern, text, "fullmatch", "{}")


def start(pattern: str, text: str, within: str = "{}") -> Any:
    """The match at the text's start, or None; the pattern stands in ``within``, which is ours.

    Raises:
        ValueError: as `full`.
    """
    return _match(pattern, text, "match", within)


def search(pattern: str, text: str) -> Any:
    """The first match in the text, or None.

    Raises:
        ValueError: as `full`.
    """
    return _match(pattern, text, "search", "{}")


def _match(pattern: str, text: str, how: str, within: str) -> Any:
    simple = _SIMPLE.fullmatch(pattern) is not None
    module: Any = re if simple else requires("regex")
    began = time.process_time()
    try:
        compiled = module.compile(within.replace("{}", pattern))
        if simple:
            return getattr(compiled, how)(text)
        left = max(SECONDS - _spent.get(pattern, 0.0), 1e-3)
        return getattr(compiled, how)(text, timeout=left)
    except TimeoutError:
        raise ValueError(
            f"the pattern {pattern!r} takes more than {SECONDS:g} second: write it simpler"
        ) from None
    except (module.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from None
    finally:
        if not simple:
            _spent[pattern] = _spent.get(pattern, 0.0) + time.process_time() - began
