"""However a product uses a quantised weight, it is as with the weight that it stands for."""

import jax
import jax.numpy as jnp
import pytest
from fast_compiles import compiled_as_ever
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_close, trained
from quantised_leaves import KINDS, leaf_of, lifted_over_both, one_layer_at_a_time

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


@pytest.fixture
def as_ever():
    with compiled_as_ever():
        yield


@pytest.mark.parametrize("name", ["fp8", "MXFP4", "fp4", "nf4 across rows"])
def test_one_layer_of_a_stack_is_decoded_at_a_time(name, as_ever):
    one_layer_at_a_time(name)


def test_experts_are_decoded_one_layer_at_a_time(as_ever):
    layers, experts, width = 12, 4, 128
    axes = jlora.Axes((2,), (3,), (0, 1))
    frozen = {"w": leaf_of("MXFP4", (layers, experts, width, width), axes)}
    config = jlora.LoraConfig(targets="w", rank=2)
    _, lora = jlora.split(frozen, config, KEY, axes={"w": axes})
    x, sizes = jnp.ones((8, width)) / 100, jnp.array([3, 0, 4, 1])

    def loss(p, x):
        def layer(x, w):
            return jnp.tanh(jax.lax.ragged_dot(x, w, sizes) / 100), None

        return jax.lax.scan(layer, x, p["w"])[0].sum()

    lifted = jlora.lift(loss, strict=True)
    plain = jlora.dequantize(frozen)
    grad = jax.jit(jax.value_and_grad(lifted, argnums=1))
    assert_close(grad(frozen, lora, x), grad(plain, lora, x), 1e-4)
    compiled = grad.lower(frozen, lora, x).compile()
    one = experts * width * width * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 4.5 * one
    report = jlora.explain(loss, frozen, lora, x)
    assert (report.materialised, report.unused) == (0, ())
    assert str(report).count("w is kept small: MXFP4") == 1
