"""Where the parameters stand: `lift`, `explain` and `trace_axes` count arguments alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora

CONFIG = jlora.LoraConfig(targets="kernel", rank=2)
PARAMS = {"kernel": jnp.ones((7, 5))}
FROZEN, LORA = jlora.split(PARAMS, CONFIG, jax.random.key(0))
X = jnp.ones((3, 7))


def model(x, params, y):
    return x @ params["kernel"] + y


@pytest.mark.parametrize("argnums", [1, -2, np.int64(1), np.int32(-2)])
def test_a_place_counts_from_either_end(argnums):
    lifted = jlora.lift(model, argnums=argnums)
    np.testing.assert_allclose(lifted(X, FROZEN, LORA, 1.0), model(X, PARAMS, 1.0))
    report = jlora.explain(model, X, FROZEN, LORA, 1.0, argnums=argnums)
    assert report.paths == ("kernel",)
    assert list(jlora.trace_axes(model, X, PARAMS, 1.0, argnums=argnums)) == ["kernel"]


@pytest.mark.parametrize("argnums", [3, -4, 40])
def test_a_place_beyond_the_arguments_is_named(argnums):
    told = f"argnums is {argnums}: expected the place of one of 3 positional arguments"
    for call in (
        lambda: jlora.lift(model, argnums=argnums)(X, FROZEN, LORA, 1.0),
        lambda: jlora.explain(model, X, FROZEN, LORA, 1.0, argnums=argnums),
        lambda: jlora.trace_axes(model, X, PARAMS, 1.0, argnums=argnums),
    ):
        with pytest.raises(ValueError, match=told):
            call()


@pytest.mark.parametrize("argnums", [(0, 1), "params", 1.0, None])
def test_what_is_no_place_is_named(argnums):
    told = r"argnums is .*: expected one position, that of the parameters"
    for call in (
        lambda: jlora.lift(model, argnums=argnums),
        lambda: jlora.explain(model, X, FROZEN, LORA, 1.0, argnums=argnums),
        lambda: jlora.trace_axes(model, X, PARAMS, 1.0, argnums=argnums),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_a_call_without_arguments_says_what_is_taken():
    with pytest.raises(ValueError, match=r"takes \(frozen, lora\) .* got 0 positional arguments"):
        jlora.lift(model)()
