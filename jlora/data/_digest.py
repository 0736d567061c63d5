"""The sha256 of rows, taken as they are read for something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from jlora.data._messages import Messages


class Digest:
    """What `digest` gives of rows that are read once, for another purpose.

    Example:
        >>> import jlora
        >>> row = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]
        >>> seen = jlora.data.Digest()
        >>> for _ in seen.through([row, row]):
        ...     pass  # `encode` reads its rows so
        >>> seen.hexdigest() == jlora.data.digest([row, row])
        True
    """

    def __init__(self) -> None:
        self._found = hashlib.sha256(b"[")
        self._begun = self._ended = 0

    def through(self, rows: Collection[Any]) -> Collection[Any]:
        """The rows, as the next part of what is digested while they are read: once, to the end."""
        return _Read(self, rows)

    def hexdigest(self) -> str:
        """The digest of all parts.

        Raises:
            ValueError: when a part was not read to its end.
        """
        if self._begun != self._ended:
            raise ValueError("a part of the rows was not read to its end: it has no digest")
        found = self._found.copy()
        found.update(b"]")
        return found.hexdigest()

    def read(self, rows: Collection[Any]) -> Iterator[Any]:
        """The rows of one part.

        Raises:
            ValueError: when another part is still being read.
        """
        if self._begun != self._ended:
            raise ValueError("one part of the rows is being read: read it to its end first")
        self._found.update(b", [" if self._begun else b"[")
        self._begun += 1
        for at, row in enumerate(rows):
            self._found.update(f"{', ' if at else ''}{json.dumps(row)}".encode())
            yield row
        self._found.update(b"]")
        self._ended += 1


class _Read(Collection[Any]):
    """Rows that a `Digest` sees go by."""

    def __init__(self, digest: Digest, rows: Collection[Any]):
        self._digest, self._rows = digest, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: object) -> bool:
        return row in self._rows

    def __iter__(self) -> Iterator[Any]:
        return self._digest.read(self._rows)


def digest(*parts: Sequence[Messages]) -> str:
    """The sha256 of the rows of all parts: another one where any row is another.

    Args:
        parts: conversations, in lists or on disk.

    Example:
        >>> import jlora
        >>> row = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]
        >>> jlora.data.digest([row], [row])[:8] == jlora.data.digest([row, row], [])[:8]
        False
    """
    found = Digest()
    for rows in parts:
        for _ in found.through(rows):
            pass
    return found.hexdigest()
