"""Boxes: parts of an array that are a range along each of its dimensions."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[range, ...]
Index = tuple[int | slice, ...]  # as numpy's; dimensions that it does not name are whole


def of(index: Index, shape: Sequence[int]) -> Box:
    """The box of an array of this shape that an index without steps means."""
    index = (*index, *(slice(None),) * (len(shape) - len(index)))
    return tuple(
        range(*each.indices(size)) if isinstance(each, slice) else range(each, each + 1)
        for each, size in zip(index, shape, strict=True)
    )


def whole(shape: Sequence[int]) -> Box:
    """All of an array of this shape."""
    return tuple(map(range, shape))


def shape(box: Box) -> tuple[int, ...]:
    """Of the box."""
    return tuple(map(len, box))


def index(box: Box) -> tuple[slice, ...]:
    """The box as numpy takes it."""
    return tuple(slice(each.start, each.stop) for each in box)


def common(one: Box, other: Box) -> Box | None:
    """What lies in both boxes of an array; None where nothing does."""
    found = tuple(
        range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return found if all(found) else None


def within(inner: Box, outer: Box) -> Box:
    """The inner box as a box of the array that is the outer one."""
    return tuple(
        range(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True)
    )
