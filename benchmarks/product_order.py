"""Three ways to a layer's product: W beside thin products, W + A B formed, and formed with care.

    python -m benchmarks.product_order

One layer, forward and backward (with respect to x, A and B), rank 8, float32. "formed" lets grad
go through W + s A B, which makes a gradient of W's size; "formed, thin gradient" has a custom
gradient that never does. In turn in one process; medians, FLOPs by the compiler's own count.
"""

import argparse
import functools
import statistics

import jax
import jax.numpy as jnp

from benchmarks._shared.table import Table, add_save, versions
from benchmarks._shared.turns import seconds_in_turns

RANK, SCALING, ROUNDS = 8, 2.0, 15


def beside(x, w, a, b):
    """x W + s (x A) B."""
    return x @ w + (x @ a) @ (SCALING * b)


def formed(x, w, a, b):
    """x (W + s A B)."""
    return x @ (w + a @ (SCALING * b))


@jax.custom_vjp
def formed_thin_gradient(x, w, a, b):
    """x (W + s A B), with gradients as if it had been x W + s (x A) B."""
    return formed(x, w, a, b)


def _forward(x, w, a, b):
    return formed(x, w, a, b), (x, w, a, b)


def _backward(kept, g):
    x, w, a, b = kept
    g_b = g @ (SCALING * b).T
    return g @ (w + a @ (SCALING * b)).T, None, x.T @ g_b, SCALING * (x @ a).T @ g


formed_thin_gradient.defvjp(_forward, _backward)


def main():
    """Prints a row for each size: tokens, inputs, outputs; milliseconds and FLOPs of each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_save(parser)
    given = parser.parse_args()
    table = Table("tokens x inputs x outputs", "way", "ms", "of beside", "GFLOP", "of beside")
    for tokens, inputs, outputs in ((256, 576, 1536), (1024, 576, 1536), (2048, 2048, 2048)):
        key = jax.random.key(0)
        x = jax.random.normal(key, (tokens, inputs))
        w = jax.random.normal(key, (inputs, outputs))
        a = jax.random.normal(key, (inputs, RANK))
        b = jax.random.normal(key, (RANK, outputs))
        ways = {}
        for way in (beside, formed, formed_thin_gradient):

            def loss(x, a, b, w, way=way):
                return jnp.sum(way(x, w, a, b) ** 2)

            ways[way.__name__] = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, a, b, w).compile()
        runs = {name: functools.partial(run, x, a, b, w) for name, run in ways.items()}
        times = seconds_in_turns(runs, ROUNDS)
        first_ms = first_flops = None
        for name, run in ways.items():
            ms = 1e3 * statistics.median(times[name])
            flops = run.cost_analysis()["flops"]
            first_ms, first_flops = first_ms or ms, first_flops or flops
            table.row(
                f"{tokens} x {inputs} x {outputs}",
                name.replace("_", " "),
                f"{ms:.1f}",
                f"{ms / first_ms:.2f}",
                f"{flops / 1e9:.2f}",
                f"{flops / first_flops:.3f}",
            )
    table.keep("product-order", given.save, versions("jax"))


if __name__ == "__main__":
    main()
