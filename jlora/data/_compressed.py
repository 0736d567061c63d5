"""Files that are compressed, as files that are not, unpacked while they are read."""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from jlora._requires import requires

_CHUNK = 1 << 16  # gzip makes at most a thousand bytes of one


class Chunks(io.RawIOBase):
    """A file to read, out of its bytes as they come."""

    def __init__(self, chunks: Iterable[bytes]):
        self._chunks = iter(chunks)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(into), len(self._left))
        into[:count], self._left = self._left[:count], self._left[count:]
        return count


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file, a part at a time."""
    return iter(functools.partial(file.read, _CHUNK), b"")


def as_file(parts: Iterable[bytes]) -> BinaryIO:
    """The bytes as a file that is read once, from its beginning to its end."""
    return io.BufferedReader(Chunks(parts), _CHUNK)  # type: ignore[return-value]


def _gunzipped(name: str, packed: Iterator[bytes]) -> Iterator[bytes]:
    make = functools.partial(zlib.decompressobj, wbits=31)
    return _frames(name, "gzip", packed, make, zlib.error)


def _unzstandard(name: str, packed: Iterator[bytes]) -> Iterator[bytes]:
    zstandard = requires("zstandard", '"jlora[data]"')
    make = zstandard.ZstdDecompressor().decompressobj
    return _frames(name, "zstd", packed, make, zstandard.ZstdError)


def _frames(
    name: str,
    kind: str,
    packed: Iterator[bytes],
    make: Callable,  # a decompressor of one frame
    damage: type[Exception],
) -> Iterator[bytes]:
    """What is packed in frames, one after the other."""
    frame = None
    try:
        for part in packed:
            while part := part.lstrip(b"\0") if frame is None else part:  # tapes end in zeros
                frame = frame or make()
                yield frame.decompress(part)
                part = frame.unused_data
                frame = None if frame.eof else frame
    except damage as error:
        raise ValueError(f"{name} is no whole {kind} file ({error}): get it again") from None
    if frame is not None:
        raise ValueError(f"{name} is no whole {kind} file (its end is missing): get it again")


def _unpacked(frames: Callable[[str, Iterator[bytes]], Iterator[bytes]]) -> Callable:
    def unpack(name: str, file: BinaryIO) -> BinaryIO:
        return as_file(frames(name, chunks(file)))

    return unpack


# By the ending of a file's name: (its name, the file) -> the file that is packed in it
UNPACKED: dict[str, Callable[[str, BinaryIO], BinaryIO]] = {
    ".gz": _unpacked(_gunzipped),
    ".zst": _unpacked(_unzstandard),
}
