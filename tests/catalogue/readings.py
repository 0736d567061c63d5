"""The ways to read an array as a weight: which dimensions are inputs, outputs and a stack."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from harnesses import number

import jlora

RANK, ALPHA = 2, 5.0  # scaled by neither 1 nor the rank


@dataclasses.dataclass(frozen=True)
class Reading:
    """A shape that holds the array's entries in their order, and the axes of that weight."""

    shape: tuple[int, ...]
    axes: jlora.Axes

    def __str__(self) -> str:
        sizes = " ".join(map(str, self.shape))
        stack = f"{self.axes.stack} stacked, " if self.axes.stack else ""
        return f"({sizes}) read as {stack}{self.axes.inputs} x {self.axes.outputs}"

    def adapter(self, *seed: Any) -> dict[str, jlora.LoraWeight]:
        """Of the leaf ``w``, as if it had trained: neither A nor B is zero."""
        draw = np.random.default_rng(number(*seed, self))
        sizes = [[self.shape[dim] for dim in dims] for dims in dataclasses.astuple(self.axes)]
        inputs, outputs, stack = sizes
        a, b = (
            jnp.asarray(0.5 * draw.standard_normal(shape), "float32")
            for shape in ((*stack, *inputs, RANK), (*stack, RANK, *outputs))
        )
        return {"w": jlora.LoraWeight(a, b, jnp.float32(ALPHA / RANK), self.axes)}


def readings(shape: tuple[int, ...]) -> list[Reading]:
    """Several for each shape of at least one dimension.

    A vector is read as a row and as a column, and gets its own shape back inside the program.
    """
    if len(shape) == 1:
        axes = jlora.Axes((0,), (1,))
        return [Reading(each, axes) for each in dict.fromkeys([(1, *shape), (*shape, 1)])]
    first, *others, last = range(len(shape))
    middle = tuple(others)
    ways = [
        ((first,), (*middle, last), ()),
        ((last,), (first, *middle), ()),
        ((first, *middle), (last,), ()),
    ]
    if middle:
        ways += [
            (tuple(range(0, len(shape), 2)), tuple(range(1, len(shape), 2)), ()),
            (middle, (last,), (first,)),
            ((last,), middle, (first,)),
            (middle, (first,), (last,)),
        ]
    return [Reading(shape, jlora.Axes(*way)) for way in dict.fromkeys(ways)]  # a matrix has two
