"""Quantised weights as TPUs read them, and tables of which a lookup decodes its rows alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import assert_close
from quantised_leaves import leaf_of

import jlora
from jlora._quantised._four_bits import TABLES, levels
from jlora._quantised._lookup import compared

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["int8", "nf4", "Q4_1"])
def test_stacks_are_pinned_for_tpus_and_nothing_else_changes(name):
    weight = leaf_of(name, (3, 1024, 256), jlora.Axes((1,), (2,), (0,)))

    def model(p, x):
        return jax.lax.scan(lambda x, w: ((x @ w)[:, :1] + x, None), x, p["w"])[0]

    lifted = jax.jit(jlora.lift(model))
    traced = lifted.trace({"w": weight}, {}, jnp.ones((2, 1024)))
    assert "LayoutConstraint" in traced.lower(lowering_platforms=("tpu",)).as_text()
    for other in ("cpu", "cuda"):
        assert "LayoutConstraint" not in traced.lower(lowering_platforms=(other,)).as_text()


@pytest.mark.parametrize("table", [*TABLES.values(), levels()])
def test_what_tpus_compare_is_what_others_look_up(table):
    codes = jnp.arange(len(table), dtype=jnp.uint8)[::-1].reshape(2, -1)
    np.testing.assert_array_equal(compared(table, codes), table[codes])


@pytest.mark.parametrize("name", ["int8", "nf4", "Q4_1"])
def test_a_lookup_decodes_its_rows_alone(name):
    rows, width, tokens = 1031, 96, jnp.array([1, 1030, 7])
    params = {"table": jax.random.normal(KEY, (rows, width)), "head": jnp.ones((width, 3))}

    def model(p, tokens):
        return jnp.tanh(p["table"][tokens] / 3) @ p["head"]

    axes = jlora.trace_axes(model, params, tokens)
    assert axes.looked_up == {"table": (0,)}
    small = jlora.quantize(params, name, targets="table", axes=axes)
    assert small["table"].axes == jlora.Axes((1,), (0,))
    config = jlora.LoraConfig(targets="table|head", rank=2)
    frozen, lora = jlora.split(small, config, KEY, axes=axes)
    lifted = jax.jit(jlora.lift(model, strict=True))
    program = lifted.lower(frozen, lora, tokens).compile()
    assert program.cost_analysis()["flops"] < rows * width / 4
    assert program.memory_analysis().temp_size_in_bytes < rows * width
    assert_close(
        program(frozen, lora, tokens), lifted(jlora.dequantize(frozen), lora, tokens), 1e-5
    )
