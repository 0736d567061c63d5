"""What a step has to move, by the sizes of what it trains: for each chip, in bytes."""

import dataclasses
import math
import re

import jax

from benchmarks._shared.llamas import LLAMAS
from benchmarks.ahead._steps import LENGTH, Step, flat

_NUMBER = 2  # bytes of a weight, an activation or its gradient


@dataclasses.dataclass(frozen=True)
class Needed:
    """Bytes that a chip sends in one step."""

    weights: float  # gathered, a layer at a time, forward and again backward
    gradients: float  # of what trains, added up once; A and B are gathered, too
    activations: float  # added up where chips share the work on a row

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.activations


def needed(name: str, step: Step, fsdp: int, sharing: int) -> Needed:
    """For so many chips along the FSDP axis, one row of 2048 tokens each, and along the model axis.

    A ring of n moves (n - 1) / n of an array to gather it or to add up and cut it, and twice that
    to add it up everywhere. The embedding's rows are looked up where they lie. A layer adds up
    activations after attention and after the MLP, and their gradients before them; it computes its
    attention again backward.

    Args:
        name: of the model.
        step: for its shapes, on any mesh that names both axes.
        fsdp: chips along the FSDP axis.
        sharing: chips along the model axis.
    """
    config, frozen = LLAMAS[name], step.frozen
    params = flat(step.state.lora if frozen is None else frozen)
    sizes = {path: _NUMBER * math.prod(leaf.shape) for path, leaf in params.items()}
    layers = sum(size for path, size in sizes.items() if re.search("^layers/.*kernel$", path))
    head = sizes["embed/embedding" if config.tied else "head/kernel"]
    part, others = (fsdp - 1) / fsdp, (sharing - 1) / sharing
    if frozen is None:
        gradients = part * sum(sizes.values()) / sharing
    else:
        gradients = 2 * part * factors_on_a_place(step, sharing)
    row = LENGTH * config.width * _NUMBER
    # and for the head's input and the embedding's output
    summed = 5 * config.layers + 2
    return Needed(
        weights=part * (2 * layers + head) / sharing,
        gradients=gradients,
        activations=2 * others * summed * row,
    )


def factors_on_a_place(step: Step, sharing: int) -> float:
    """Bytes of A and B, in bfloat16, that all chips of one place along the model axis have."""
    factors = [leaf for leaf in jax.tree.leaves(step.state.lora) if leaf.ndim > 1]
    cut = lambda leaf: "model" in str(leaf.sharding.spec)  # noqa: E731
    return sum(_NUMBER * math.prod(leaf.shape) / (sharing if cut(leaf) else 1) for leaf in factors)
