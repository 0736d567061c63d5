"""What a program must not move, looked for among its collectives."""

import math
import re

from benchmarks.ahead._collectives import Moved
from benchmarks.ahead._steps import RANK, Step, flat
from benchmarks.ahead._theory import factors_on_a_place

SUMS = ("all-reduce", "reduce-scatter")


def stacks(found: list[Moved], step: Step) -> list[Moved]:
    """Gathers of a whole stack of layers, however it is cut otherwise: there should be none.

    Weights are gathered a layer at a time.
    """
    its = _kernels(step)
    layers, smallest = its[0][0], min(math.prod(shape[1:]) for shape in its)
    most = layers * smallest // step.layout.mesh.size
    return [
        each
        for each in found
        if each.name in ("all-gather", "collective-permute")
        if any(layers in shape[:1] and math.prod(shape) >= most for shape in each.shapes)
    ]


def largest_sum(found: list[Moved], step: Step) -> float | None:
    """The entries of the largest array that is added up over rows, by those of a weight on a chip.

    By the smallest weight's: below 1, no gradient of a weight is added up, as none should be by a
    step of LoRA. None where groups along both axes are alike, and sums of activations among them.
    """
    mesh = step.layout.mesh.shape
    if mesh["fsdp"] == mesh["model"]:
        return None
    over_rows = [e for e in found if e.name in SUMS and e.chips != mesh["model"]]
    largest = max((math.prod(shape) for each in over_rows for shape in each.shapes), default=0)
    smallest = min(math.prod(shape[1:]) for shape in _kernels(step)) / mesh["model"]
    return largest / smallest


def sums_of_factors(found: list[Moved], step: Step) -> float | None:
    """Bytes that chips send to add up the gradients of A and B, by those of one sum everywhere.

    1 where each is added up once on every chip, 1/2 where each chip gets the part that it keeps.
    None where there is one place alone, or groups along both axes are alike.
    """
    fsdp, model = step.layout.mesh.shape["fsdp"], step.layout.mesh.shape["model"]
    if fsdp in (1, model):
        return None
    sums = [each for each in found if each.name in SUMS and each.chips == fsdp]
    its = sum(each.sent for each in sums if any(RANK in shape for shape in each.shapes))
    return its / (2 * (fsdp - 1) / fsdp * factors_on_a_place(step, model))


def _kernels(step: Step) -> list[tuple[int, ...]]:
    """The shapes of the layers' weights, in stacks."""
    frozen = step.state.lora if step.frozen is None else step.frozen
    return [
        leaf.shape for path, leaf in flat(frozen).items() if re.search("^layers/.*kernel$", path)
    ]
