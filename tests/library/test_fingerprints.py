"""A fingerprint sees every value and where it stands, however the leaf is held and taken apart."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jlora import checkpoint
from jlora.checkpoint import _position_sums

DTYPES = (
    "float32", "bfloat16", "float16", "float8_e4m3fn", "float64", "complex64", "bool", "int4",
    "uint8", "int32", "int64",
)  # fmt: skip
SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)
ON_DEVICE = ("float32", "bfloat16", "int4", "bool", "complex64")  # those that need no 64 bits


def told(leaf):
    return checkpoint.fingerprint({"leaf": leaf})["leaf"]


def drawn(shape, dtype, seed):
    values = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 7, shape)
    return np.asarray(values).astype(jnp.dtype(dtype))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 99), st.data())
def test_one_changed_value_anywhere_is_noticed(shape, dtype, seed, data):
    values = drawn(shape, dtype, seed)
    at = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    changed = values.copy()
    changed[at] = 1 - values[at] if dtype == "bool" else values[at] + values.dtype.type(1)
    assert told(changed)["sum"] != told(values)["sum"]
    assert checkpoint.differences({"leaf": told(values)}, {"leaf": told(changed)}) == [
        "leaf: the shape agrees, the values are others"
    ]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 99), st.data())
def test_two_values_that_changed_places_are_noticed(shape, dtype, seed, data):
    values = drawn(shape, dtype, seed)
    one, other = (tuple(data.draw(st.integers(0, size - 1)) for size in shape) for _ in "ab")
    hypothesis.assume(values[one] != values[other])
    changed = values.copy()
    changed[one], changed[other] = values[other], values[one]
    assert told(changed)["sum"] != told(values)["sum"]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 99))
def test_a_leaf_that_comes_in_parts_has_the_fingerprint_of_the_whole(shape, dtype, seed):
    stack = drawn((3, *shape), dtype, seed)
    parts = checkpoint.Parts(stack.shape, stack.dtype)
    for layer in (2, 0, 1):
        assert parts.fingerprint is None
        parts.see(stack[layer], (layer,))
    assert parts.fingerprint == told(stack)


@pytest.mark.parametrize("dtype", ON_DEVICE)
@pytest.mark.parametrize("shape", [(), (5,), (3, 0, 7), (3, 5, 7)])
def test_the_device_adds_up_what_the_host_does(monkeypatch, dtype, shape):
    values = drawn(shape, dtype, 0)
    want = _position_sums.of_part(values, ())
    assert _position_sums.of_array(jnp.asarray(values)) == want
    monkeypatch.setattr(_position_sums, "_AT_ONCE", 0)
    assert _position_sums.of_array(jnp.asarray(values)) == want
    assert _position_sums.of_array(values) == want  # a row at a time


def test_values_of_64_bits_are_seen_whole():
    for dtype in ("float64", "int64"):
        values = drawn((3, 5), dtype, 0)
        with jax.enable_x64(True):
            assert told(jnp.asarray(values)) == told(values)
        changed = (values.view("uint64") ^ np.uint64(2**63)).view(dtype)
        assert told(changed)["sum"] != told(values)["sum"]
