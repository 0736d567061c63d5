"""The entries of a JSON array, one after the other, however large the array is."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")


def array(chunks: Iterable[bytes], longest: int) -> Iterator[tuple[str, Any]]:
    """Where each entry stands, and its value; the last one is an error if the array is damaged.

    Args:
        chunks: the bytes of the array, in UTF-8.
        longest: an entry of more letters is an error.
    """
    text = _Text(chunks, longest)
    number = 0
    try:
        text.take("[")
        if text.next() != "]":
            while True:
                value = text.value()
                number += 1
                yield f"entry {number}", value
                if text.next() != ",":
                    break
                text.take(",")
        text.take("]")
        if text.next():
            raise json.JSONDecodeError("Extra data", text.held, text.at)
    except json.JSONDecodeError as error:
        column = error.colno + (text.columns_before if error.lineno == 1 else 0)
        problem = f"not JSON: {error.msg} at column {column}"
        yield f"line {text.lines_before + error.lineno}", ValueError(problem)
    except RecursionError:
        yield f"entry {number + 1}", ValueError("not JSON: nested too deeply")
    except ValueError as error:  # no UTF-8, or a number of thousands of digits
        yield f"entry {number + 1}", ValueError(f"not JSON: {error}")


class _Text:
    """The part of a text that is being read; what was read is forgotten."""

    def __init__(self, chunks: Iterable[bytes], longest: int):
        self._chunks, self._longest = iter(chunks), longest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self.held, self.at, self.ended = "", 0, False
        self.lines_before = self.columns_before = 0

    def next(self) -> str:
        """The next letter that is no space, or nothing at the end."""
        while True:
            self.at = _SPACE.match(self.held, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.held) or not self._more():
                return self.held[self.at : self.at + 1]

    def take(self, letter: str) -> None:
        if self.next() != letter:
            raise json.JSONDecodeError(f"Expecting {letter!r}", self.held, self.at)
        self.at += 1

    def value(self) -> Any:
        self.next()
        while True:
            try:
                value, end = self._scan(self.held, self.at)
                if end < len(self.held) or self.ended:  # a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError:
                if self.ended:
                    raise
            self._more()

    def _more(self) -> bool:
        """Reads as much again as is held, so that a long entry is scanned a few times only."""
        read, done = self.held[: self.at], self.held[self.at :]
        self.held, self.at = done, 0
        lines = read.count("\n")
        self.lines_before += lines
        self.columns_before = (
            len(read) - read.rfind("\n") - 1 if lines else (self.columns_before + len(read))
        )
        if len(self.held) > self._longest:
            raise ValueError(f"an entry of more than {self._longest} letters")
        parts, wanted = [self.held], max(1, len(self.held))
        while wanted > 0 and not self.ended:
            chunk = next(self._chunks, b"")
            self.ended = not chunk
            parts.append(self._decoder.decode(chunk, final=self.ended))
            wanted -= len(parts[-1])
        self.held = "".join(parts)
        return len(self.held) > len(done)
