"""A tensor in a file, of which no more is read than is asked for, and nothing twice."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from jlora.models._files import _boxes
from jlora.models._files._boxes import Box


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What is known of a tensor before it is read.

    Along each dimension a box can be read by itself where both its edges are multiples of the grain
    or the end: with 1 everywhere, with the block of a quantised row at every block, with the whole
    size not at all.
    """

    shape: tuple[int, ...]
    grain: tuple[int, ...]
    read: Callable[[Box], np.ndarray]  # of a box that the grain allows

    def parts(self, boxes: Iterable[Box]) -> Iterator[tuple[Box, np.ndarray]]:
        """Each of the boxes and what it holds.

        A dimension that the grain cuts otherwise than the boxes is read whole, and cut here. No
        byte is read twice.

        Args:
            boxes: of which any two are apart; along each dimension they are equal or apart.
        """
        boxes = [*boxes]
        exact = [
            all(edge % grain == 0 or edge == size for box in boxes for edge in _edges(box[axis]))
            for axis, (grain, size) in enumerate(zip(self.grain, self.shape, strict=True))
        ]
        within: dict[Box, list[Box]] = {}
        for box in boxes:
            sides = zip(box, self.shape, exact, strict=True)
            read = tuple(side if as_it_is else range(size) for side, size, as_it_is in sides)
            within.setdefault(read, []).append(box)
        for read, its in within.items():
            values = self.read(read)
            for box in its:
                yield box, values[_boxes.index(_boxes.within(box, read))]

    def part(self, box: Box) -> np.ndarray:
        """What one box holds."""
        [(_, values)] = self.parts([box])
        return values

    def whole(self) -> np.ndarray:
        """All of it."""
        return self.read(_boxes.whole(self.shape))


def as_it_lies(file: Path, start: int, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """A tensor that lies in the file as it is, from this byte on."""
    read = functools.partial(read_box, file, start, shape, dtype)
    return Tensor(shape, (1,) * len(shape), read)


def all_at_once(shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> Tensor:
    """A tensor that comes as a whole or not at all."""
    return Tensor(shape, shape, lambda box: make())


def read_box(
    file: Path, start: int, shape: tuple[int, ...], dtype: np.dtype, box: Box
) -> np.ndarray:
    """A box of an array that begins at this byte of a file: all weights are read here."""
    # mapped each time: a mapped file counts as memory, as much of it as was read
    mapped = np.memmap(file, dtype, "r", start, shape)
    return np.array(mapped[_boxes.index(box)])


def _edges(side: range) -> tuple[int, int]:
    return side.start, side.stop
