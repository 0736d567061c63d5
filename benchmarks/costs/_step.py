"""One train step, traced and compiled: what the compiler says of it, and how long both took."""

import dataclasses
import time
from typing import Any

import jax
import optax

from benchmarks._shared.step import train_step
from benchmarks.costs._ways import Way


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one compiled train step."""

    flops: float
    bytes_accessed: float
    temporary: int  # bytes
    arguments: int  # bytes


@dataclasses.dataclass(frozen=True)
class Step:
    """Loss, gradient and AdamW for what trains: (trained, state, frozen, x) -> (.., .., loss)."""

    run: Any
    state: Any  # shapes of the optimizer's
    trace_seconds: float
    compile_seconds: float

    @property
    def cost(self) -> Cost:
        """The compiler's own figures."""
        figures, memory = self.run.cost_analysis(), self.run.memory_analysis()
        return Cost(
            figures["flops"],
            figures["bytes accessed"],
            memory.temp_size_in_bytes,
            memory.argument_size_in_bytes,
        )


def step(way: Way, x: Any) -> Step:
    """The step of this way, compiled for shapes; nothing runs."""
    tx = optax.adamw(1e-3)
    state = jax.eval_shape(tx.init, way.trained)
    began = time.perf_counter()
    traced = train_step(way.loss, tx).trace(way.trained, state, way.frozen, x)
    read = time.perf_counter()
    compiled = traced.lower().compile()
    return Step(compiled, state, read - began, time.perf_counter() - read)
