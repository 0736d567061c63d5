"""The header and the tensors of a GGUF file, or of all files that one was split into."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jlora._requires import requires

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class Fields(Mapping[str, Any]):
    """A header's entries, each decoded when it is asked for: a name in it may be no UTF-8."""

    def __init__(self, fields: Mapping[str, Any], where: str):
        self._fields, self._where = fields, where
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._decoded:
            self._decoded[name] = self._contents(name)
        return self._decoded[name]

    def _contents(self, name: str) -> Any:
        field = self._fields[name]
        try:
            return field.contents()
        except UnicodeDecodeError:
            raise ValueError(f"{self._where}: {name} in the header is no UTF-8") from None
        except (IndexError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{self._where}: {name} in the header is damaged: {error}") from None

    @property
    def file(self) -> Path:
        """That has the header: the first of several."""
        return Path(next(iter(self._fields.values())).parts[0].filename)

    def places(self) -> dict[str, range]:
        """The bytes of each entry in the file, in its order."""
        return {
            name: range(field.offset, field.offset + sum(int(part.nbytes) for part in field.parts))
            for name, field in self._fields.items()
            if not name.startswith("GGUF.")  # counts, which stand before the entries
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def read(path: Path) -> tuple[Fields, dict[str, Any]]:
    """The header, and the tensors by name.

    Raises:
        ValueError: when a file is no whole GGUF file, or one of several is missing.
    """
    first, *others = files_of(path)
    fields, tensors = _one(first)
    for other in others:
        more = _one(other)[1]
        if twice := sorted(tensors.keys() & more.keys()):
            raise ValueError(f"{other}: {twice[0]} is in an earlier file as well")
        tensors |= more
    header = Fields(fields, str(path))
    count = header.get("split.count", 0) if "split.count" in fields else 0
    if count not in (0, 1, 1 + len(others)):
        raise ValueError(
            f"{path} is one of {count} files that are named as -00001-of-{count:05}.gguf: "
            "give it its name and the others beside it"
        )
    return header, tensors


def files_of(path: Path) -> list[Path]:
    """The file, or all of those that it was split into, in their order.

    Raises:
        ValueError: when one of them is missing.
    """
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    numbers = range(1, int(found["count"]) + 1)
    named = (f"{found['stem']}-{number:05}-of-{found['count']}.gguf" for number in numbers)
    files = [path.with_name(name) for name in named]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{path} is one of {len(files)} files, of which {missing[0]} is missing")
    return files


def _one(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    gguf = requires("gguf")
    try:
        reader = gguf.GGUFReader(path)
        return dict(reader.fields), {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OSError, OverflowError, TypeError) as error:
        raise ValueError(f"{path}: no whole GGUF file ({error}). Get the file again") from None
