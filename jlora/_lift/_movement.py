"""Where the dimensions of a weight go when a model moves it about."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jlora._lowrank import RANK, Factor


@dataclasses.dataclass(frozen=True)
class Movement:
    """What an operation does to the dimensions of its operand, whatever stands for the array.

    Attributes:
        sources: for each dimension of the result, the operand's dimensions that it is made of.
        parted: the operand's dimensions of which parts are taken, in another order or not.
        chosen: those of them of which single places are chosen, by an index.
        summed: the operand's dimensions that are summed over.
        stacked: the operand's dimensions that a loop or a map runs over.
        spread: whether the result repeats the operand, as a bias is repeated over a batch.
        placed: whether its arrays go to other devices, or to a mesh whose axes have other types.
        same: pairs of an operand's dimension and the result's that it is, beside those of size 1.

    Example:
        >>> from jlora import extend
        >>> transposed = extend.Movement(((1,), (0,)))
        >>> transposed.new  # where each dimension went
        {1: 0, 0: 1}
    """

    sources: tuple[tuple[int, ...], ...]
    parted: frozenset[int] = frozenset()
    chosen: frozenset[int] = frozenset()
    summed: frozenset[int] = frozenset()
    stacked: frozenset[int] = frozenset()
    spread: bool = False
    placed: bool = False
    same: tuple[tuple[int, int], ...] = ()

    @functools.cached_property
    def new(self) -> dict[int, int]:
        """Where each dimension went that stays one."""
        alone = {source[0]: at for at, source in enumerate(self.sources) if len(source) == 1}
        return alone | dict(self.same)


def unmoved(ndim: int, **what: Any) -> Movement:
    """Every dimension stays where it is.

    Args:
        ndim: the operand's number of dimensions.
        **what: fields of `Movement` beside ``sources``.

    Returns:
        the movement.

    Example:
        >>> from jlora import extend
        >>> extend.unmoved(2).sources
        ((0,), (1,))
    """
    return Movement(tuple((dim,) for dim in range(ndim)), **what)


def without(gone: set[int] | frozenset[int], ndim: int, **what: Any) -> Movement:
    """Some dimensions are no longer there.

    Args:
        gone: the operand's dimensions that the result has not.
        ndim: the operand's number of dimensions.
        **what: fields of `Movement` beside ``sources``, as ``summed``.

    Returns:
        the movement.

    Example:
        >>> from jlora import extend
        >>> extend.without({0}, 3, summed=frozenset({0})).sources
        ((1,), (2,))
    """
    return Movement(tuple((dim,) for dim in range(ndim) if dim not in gone), **what)


def with_new(at: int, ndim: int) -> Movement:
    """A new dimension stands at a place."""
    sources = [(dim,) for dim in range(ndim)]
    return Movement((*sources[:at], (), *sources[at:]))


def relabel(factor: Factor, new: dict[int, int]) -> Factor:
    """The factor with its dimensions renamed; its array does not move."""
    return Factor(factor.array, tuple(RANK if dim == RANK else new[dim] for dim in factor.dims))
