"""What the device does when it multiplies matrices and nothing else."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from jlora.models import DecoderConfig


def ceiling(config: DecoderConfig, tokens: int, dtype: Any, rounds: int) -> float:
    """FLOP/s of the fastest of the model's own three kinds of product, each jitted alone."""
    width, inner = config.width, config.mlp_width
    return max(
        _rate(tokens, inputs, outputs, dtype, rounds)
        for inputs, outputs in ((width, inner), (inner, width), (width, width))
    )


def _rate(rows: int, inputs: int, outputs: int, dtype: Any, rounds: int) -> float:
    """The median over rounds of at least a tenth of a second each."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (rows, inputs), dtype)
    w = jax.random.normal(keys[1], (inputs, outputs), dtype)
    product = jax.jit(jnp.matmul)

    def seconds(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            result = product(x, w)
        result.block_until_ready()
        return time.perf_counter() - began

    seconds(1)
    times = 1
    while seconds(times) < 0.1:
        times *= 2
    once = statistics.median(seconds(times) for _ in range(rounds)) / times
    return 2 * rows * inputs * outputs / once
