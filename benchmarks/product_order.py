"""Three ways to a layer's product: W beside thin products, W + A B formed, and formed with care.

    python -m benchmarks.product_order

One layer, forward and backward (with respect to x, A and B), rank 8, float32. "formed" lets grad
go through W + s A B, which makes a gradient of W's size; "formed, thin gradient" has a custom
gradient that never does. In turn in one process; medians, FLOPs by the compiler's own count.
"""

import functools
import statistics

import jax
import jax.numpy as jnp

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
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, rank {RANK}, float32")
    print(f"{'tokens x in x out':<20}{'way':<24}{'ms':>8}{'ratio':>8}{'GFLOP':>9}{'ratio':>8}")
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
            print(
                f"{f'{tokens} x {inputs} x {outputs}':<20}{name.replace('_', ' '):<24}"
                f"{ms:8.1f}{ms / first_ms:8.2f}{flops / 1e9:9.2f}{flops / first_flops:8.3f}"
            )


if __name__ == "__main__":
    main()
