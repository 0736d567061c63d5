"""Law 4 in layouts that nobody thought of: a lifted step costs what it costs by hand.

By hand is ``x W + s x A B`` as einsums, the three operands of the second in the order that
`opt_einsum` finds to be the cheapest, and FLOPs are those that the compiler counts.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import products, some
from hypothesis import given
from laws import assert_close

import jlora

RANK = 2
pytestmark = pytest.mark.usefixtures("compiled_as_ever")


def programs(layout):
    """The base function, the same by hand with an adapter, and what both take."""
    x, w, out, sizes, axes = layout
    draw = np.random.default_rng(0)
    array = lambda labels: jnp.asarray(  # noqa: E731
        draw.standard_normal([full[each] for each in labels]), "float32"
    )
    full = sizes | {"z": RANK}
    a, b = (
        "".join([*(w[dim] for dim in axes.stack), *name])
        for name in (
            [*(w[dim] for dim in axes.inputs), "z"],
            ["z", *(w[dim] for dim in axes.outputs)],
        )
    )
    lora = {"w": jlora.LoraWeight(array(a), array(b), jnp.float32(1.5), axes)}

    def base(params, x_array):
        return jnp.einsum(layout.formula, x_array, params["w"])

    def by_hand(params, lora, x_array):
        node = lora["w"]
        thin = jnp.einsum(f"{x},{a},{b}->{out}", x_array, node.a, node.b, optimize="optimal")
        return base(params, x_array) + jax.lax.stop_gradient(node.scaling) * thin

    return base, by_hand, {"w": array(w)}, lora, array(x)


@given(products(sizes=(3, 6, 12), batch_sizes=(1, 5, 16)))
@some(25)
def test_a_lifted_step_costs_what_it_costs_by_hand(layout):
    base, by_hand, frozen, lora, x = programs(layout)
    lifted = jlora.lift(base, strict=True)

    def step(apply):
        def loss(lora, frozen, x):
            return (apply(frozen, lora, x) ** 2).mean()

        return jax.jit(jax.value_and_grad(loss)).lower(lora, frozen, x).compile()

    ours, theirs = step(lifted), step(by_hand)
    assert_close(ours(lora, frozen, x), theirs(lora, frozen, x), 1e-3)
    flops, limit = (each.cost_analysis()["flops"] for each in (ours, theirs))
    small = 4 * (math.prod(x.shape) + lora["w"].a.size + lora["w"].b.size)  # a scaling somewhere
    assert flops <= 1.005 * limit + small, (layout, flops, limit)


def test_activations_that_meet_the_outputs_are_multiplied_by_the_thin_one_first():
    """``x @ w.T``: the other order forms A B, 500 times the FLOPs of the right one."""
    frozen = {"w": jnp.ones((512, 1024))}
    _, lora = jlora.split(frozen, jlora.LoraConfig(targets="w", rank=1), jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, 1024), jnp.float32)
    lifted = jlora.lift(lambda p, x: x @ p["w"].T, strict=True)
    flops = jax.jit(lifted).lower(frozen, lora, x).compile().cost_analysis()["flops"]
    assert flops <= 2 * 512 * 1024 + 3 * (512 + 1024)
