"""Tests by drawn examples: how many of them, and products of any layout."""

import os
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import jlora


def some(usual):
    """The same examples each time, or so many others as ``JLORA_EXAMPLES`` says."""
    return settings(
        max_examples=int(os.environ.get("JLORA_EXAMPLES", usual)),
        deadline=None,
        derandomize="JLORA_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Labels(NamedTuple):
    """A product's dimensions by letters, those of each array in its order, and their sizes."""

    x: str
    w: str
    out: str
    sizes: dict[str, int]
    axes: jlora.Axes  # of w

    @property
    def formula(self):
        """As `jnp.einsum` has it."""
        return f"{self.x},{self.w}->{self.out}"


@st.composite
def products(draw, sizes, batch_sizes, fewest_batch=0):
    """Of x with a weight of any axes, or with its transpose."""
    names = iter("abcdefghijklmnop")

    def some_of(low, high):
        return [next(names) for _ in range(draw(st.integers(low, high)))]

    stack, inputs, outputs = some_of(0, 1), some_of(1, 2), some_of(1, 2)
    batch = some_of(fewest_batch, 2)
    size = {name: draw(st.sampled_from(sizes)) for name in (*stack, *inputs, *outputs)}
    size |= {name: draw(st.sampled_from(batch_sizes)) for name in batch}
    sides = (outputs, inputs) if draw(st.booleans()) else (inputs, outputs)
    x, w, out = (
        "".join(draw(st.permutations(each)))
        for each in (
            [*stack, *batch, *sides[0]],
            [*stack, *inputs, *outputs],
            [*stack, *batch, *sides[1]],
        )
    )
    axes = jlora.Axes(*(tuple(sorted(map(w.index, each))) for each in (inputs, outputs, stack)))
    return Labels(x, w, out, size, axes)
