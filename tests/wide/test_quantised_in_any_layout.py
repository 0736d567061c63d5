"""However a product uses a quantised weight, it is as with the weight that it stands for."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_close, trained
from quantised_leaves import KINDS, leaf_of, lifted_over_both

import jlora

KEY = jax.random.key(0)
LETTERS = "abcd"


@st.composite
def products(draw):
    """A weight of three dimensions, how it is used, and a product that uses it so."""
    dims = draw(st.permutations(range(3)))
    inputs = tuple(sorted(dims[: draw(st.integers(1, 2))]))
    others = [dim for dim in range(3) if dim not in inputs]
    stacked = len(others) == 2 and draw(st.booleans())
    stack, outputs = (tuple(others[:1]), tuple(others[1:])) if stacked else ((), tuple(others))
    shape = tuple(draw(st.lists(st.integers(2, 40), min_size=3, max_size=3)))
    names = "".join(LETTERS[dim] for dim in range(3))
    x = "d" + "".join(LETTERS[dim].replace("d", "z") for dim in (*stack, *inputs))
    out = "d" + "".join(LETTERS[dim] for dim in (*stack, *outputs))
    x_shape = (3, *(shape[dim] for dim in (*stack, *inputs)))
    return shape, jlora.Axes(inputs, outputs, stack), f"{x},{names}->{out}", x_shape


@settings(max_examples=60, deadline=None)
@given(products(), st.sampled_from(KINDS))
def test_in_any_layout(drawn, name):
    shape, axes, equation, x_shape = drawn
    params = {"w": leaf_of(name, shape, axes)}
    plain = jlora.dequantize(params)
    assert plain["w"].shape == shape
    x = jax.random.normal(KEY, x_shape)

    def fn(p, x):
        return jnp.einsum(equation, x, p["w"])

    config = jlora.LoraConfig(targets="w", rank=1, alpha=3.0)
    frozen, lora = jlora.split(params, config, KEY, axes={"w": axes})
    lora = trained(lora)
    run = jax.jit(jlora.lift(fn, strict=True))
    assert_close(run(frozen, lora, x), run(plain, lora, x), 1e-4)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_lifted_over_each_format_is_lifted_over_what_it_stands_for(name, method):
    lifted_over_both(name, method)
