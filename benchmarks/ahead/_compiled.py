"""What a device's compiler says of one step: bytes on each chip, or that it does not fit."""

import dataclasses
import math
import re
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from benchmarks._shared.memory import allocated
from benchmarks.ahead._slices import Slice
from benchmarks.ahead._steps import Step
from jlora.trainer._flops import flops


@dataclasses.dataclass(frozen=True)
class Figures:
    """Bytes on each chip, and FLOPs."""

    weights: int  # of the model, frozen or not
    adapters: int
    optimizer: int
    temporary: int | None  # None: did not fit
    peak: int  # at once
    flops: float  # of the step's products on each chip, loops in full
    repeated: float | None  # the TPU compiler's FLOPs over those, loops counted once in both
    in_turns: bool = False  # it made loops over chips of some products, each counted once

    @property
    def fits(self) -> bool:
        return self.temporary is not None


def compiled(step: Step, on: Slice) -> Figures:
    """Compiles the step."""
    traced = step.fn.trace(*step.args)
    kept = held(step)
    products = flops(traced.jaxpr.jaxpr) / on.chips
    once = flops(traced.jaxpr.jaxpr, loops_once=True) / on.chips
    try:
        done = traced.lower().compile()
    except JaxRuntimeError as error:
        return Figures(*kept, None, needed(str(error)), products, None)
    memory: Any = done.memory_analysis()
    peak = memory.peak_memory_in_bytes or allocated(memory)  # not every compiler says
    temporary = memory.temp_size_in_bytes if peak <= on.memory else None
    counted: Any = done.cost_analysis()  # none for GPUs
    repeated = counted["flops"] / once if counted else None
    in_turns = "windowed_dot_general" in (done.as_text() or "")
    return Figures(*kept, temporary, peak, products, repeated, in_turns)


def held(step: Step) -> tuple[int, int, int]:
    """Bytes on each chip of weights, adapters and optimizer state: known without compiling."""
    trained, state = on_a_chip(step.state.lora), on_a_chip(step.state.opt_state)
    if step.frozen is None:
        return trained, 0, state
    return on_a_chip(step.frozen), trained, state


def on_a_chip(tree: Any) -> int:
    """Bytes of the tree's shards on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
# Before buffers are assigned, and after.
SAYINGS = (r"memory required .*?\(([\d.]+)([KMG]?)\) exceeds", r"Used ([\d.]+)([KMG]?) of")


def needed(message: str) -> int:
    """The bytes that an out-of-memory error of the compiler names.

    Raises:
        RuntimeError: when it is another error.
    """
    for saying in SAYINGS:
        if found := re.search(saying, message):
            number, unit = found.groups()
            return round(float(number) * UNITS[unit])
    raise RuntimeError(f"the compiler failed, and not for memory: {message[:2000]}")
