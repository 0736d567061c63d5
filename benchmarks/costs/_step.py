"""One train step, traced and compiled: what the compiler says of it, and how long both took."""

import dataclasses
import time
from typing import Any

import jax
import optax

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
    """Loss, gradient and AdamW for what trains: (trained, state, frozen, x) -> (.., .., loss).

    Nothing else: what `jlora.trainer` does beside it would hide what the ways differ in.
    """

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

    def update(trained, state, frozen, x):
        value, grads = jax.value_and_grad(way.loss)(trained, frozen, x)
        updates, state = tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, value

    began = time.perf_counter()
    traced = jax.jit(update, donate_argnums=(0, 1)).trace(way.trained, state, way.frozen, x)
    read = time.perf_counter()
    compiled = traced.lower().compile()
    return Step(compiled, state, read - began, time.perf_counter() - read)
