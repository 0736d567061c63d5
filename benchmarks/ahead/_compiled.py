"""What a device's compiler says of one step: bytes on each chip, or that it does not fit."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from benchmarks._shared.memory import allocated
from benchmarks.ahead._slices import Slice
from benchmarks.ahead._steps import Step
from jlora.trainer._flops import flops


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiler made, or why it made nothing."""

    text: str
    peak: int  # bytes on a chip, at once
    temporary: int | None  # None: did not fit
    flops: float | None  # loops counted once; the compiler for CUDA does not say
    arguments: int | None = None  # bytes of weights, state and batch, as the device lays them out


def program(step: Step, kept: Path | None = None) -> Program:
    """The step's program: compiled, or as an earlier call has kept it in a file."""
    if kept is not None and kept.exists():
        return Program(**json.loads(kept.read_text("utf-8")))
    try:
        done = step.fn.lower(*step.args).compile()
    except JaxRuntimeError as error:
        its = Program("", needed(str(error)), None, None)
    else:
        memory: Any = done.memory_analysis()
        peak = memory.peak_memory_in_bytes or allocated(memory)  # not every compiler says
        counted: Any = done.cost_analysis()
        count = counted["flops"] if counted else None
        sizes = memory.temp_size_in_bytes, count, memory.argument_size_in_bytes
        its = Program(done.as_text() or "", peak, *sizes)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(dataclasses.asdict(its)), "utf-8")
    return its


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


def figures(step: Step, its: Program, on: Slice) -> Figures:
    """What the program needs there."""
    products, once = (count / on.chips for count in traced_flops(step))
    temporary = its.temporary if its.peak <= on.memory else None
    repeated = None if its.flops is None else its.flops / once
    in_turns = "windowed_dot_general" in its.text
    return Figures(*held(step), temporary, its.peak, products, repeated, in_turns)


def traced_flops(step: Step) -> tuple[int, int]:
    """(FLOPs of all products, loops in full; the same with loops counted once) on all chips."""
    jaxpr = step.fn.trace(*step.args).jaxpr.jaxpr
    return flops(jaxpr), flops(jaxpr, loops_once=True)


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
