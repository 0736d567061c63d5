"""Law 4 in layouts that nobody thought of: a lifted step costs what it costs by hand.

By hand is ``x W + s x A B`` as einsums, the three operands of the second in the order that
`opt_einsum` finds to be the cheapest, and FLOPs are those that the compiler counts.
"""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import assert_close

import jlora

EXAMPLES = int(os.environ.get("JLORA_EXAMPLES", "25"))
RANK = 2
pytestmark = pytest.mark.usefixtures("compiled_as_ever")


@st.composite
def layouts(draw):
    """(labels of x, of W, of the result, sizes, axes, whether outputs are contracted)."""
    count = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    names = iter("abcdefghijklmnop")
    stack = [next(names) for _ in range(count(0, 1))]
    inputs = [next(names) for _ in range(count(1, 2))]
    outputs = [next(names) for _ in range(count(1, 2))]
    batch = [next(names) for _ in range(count(0, 2))]
    sizes = {name: draw(st.sampled_from((3, 6, 12))) for name in (*stack, *inputs, *outputs)}
    sizes |= {name: draw(st.sampled_from((1, 5, 16))) for name in batch}
    backwards = draw(st.booleans())  # x W', as an embedding's other end
    contracted, kept = (outputs, inputs) if backwards else (inputs, outputs)
    w = draw(st.permutations([*stack, *inputs, *outputs]))
    x = draw(st.permutations([*stack, *batch, *contracted]))
    out = draw(st.permutations([*stack, *batch, *kept]))
    axes = jlora.Axes(*(tuple(sorted(map(w.index, each))) for each in (inputs, outputs, stack)))
    return "".join(x), "".join(w), "".join(out), sizes, axes


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
        return jnp.einsum(f"{x},{w}->{out}", x_array, params["w"])

    def by_hand(params, lora, x_array):
        node = lora["w"]
        thin = jnp.einsum(f"{x},{a},{b}->{out}", x_array, node.a, node.b, optimize="optimal")
        return base(params, x_array) + jax.lax.stop_gradient(node.scaling) * thin

    return base, by_hand, {"w": array(w)}, lora, array(x)


@given(layouts())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="JLORA_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
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
