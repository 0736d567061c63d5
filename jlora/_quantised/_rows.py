"""A weight as rows of numbers that lie in blocks, and back: rows run along its inputs."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jlora._lowrank import Axes, Dims


class Rows(NamedTuple):
    """The dimensions of a weight by what they are to its rows."""

    stack: Dims
    outputs: Dims
    inputs: Dims  # along a row

    @classmethod
    def of(cls, axes: Axes) -> Rows:
        return cls(axes.stack, axes.outputs, axes.inputs)


def matrices(axes: Axes) -> Rows:
    """Each matrix of the weight as one row, its outputs one behind the other."""
    return Rows(axes.stack, (), (*axes.outputs, *axes.inputs))


def before(axes: Axes | Rows) -> Dims:
    """The weight's dimensions that come first: one row for each of their entries."""
    return (*axes.stack, *axes.outputs)


def rows_of(weight: jax.Array, axes: Axes | Rows, block: int) -> jax.Array:
    """(*stack, *outputs, blocks, block) of a weight; what the last block lacks is zero."""
    rows = jnp.transpose(weight, (*before(axes), *axes.inputs))
    first = rows.shape[: len(before(axes))]
    rows = rows.reshape(*first, math.prod(rows.shape[len(first) :]))
    short = -rows.shape[-1] % block
    if short:
        rows = jnp.pad(rows, [(0, 0)] * len(first) + [(0, short)])
    return rows.reshape(*first, rows.shape[-1] // block, block)


def weight_of(blocks: jax.Array, axes: Axes | Rows, shape: tuple[int, ...]) -> jax.Array:
    """The weight of this shape out of (*stack, *outputs, blocks, block)."""
    first = blocks.shape[: len(before(axes))]
    inputs = tuple(shape[dim] for dim in axes.inputs)
    rows = blocks.reshape(*first, blocks.shape[-2] * blocks.shape[-1])
    rows = rows[..., : math.prod(inputs)].reshape(*first, *inputs)
    lies = (*before(axes), *axes.inputs)
    return jnp.transpose(rows, [lies.index(dim) for dim in range(len(lies))])
