"""Two gradients of one jitted call that are alive at once, each of other arguments."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from laws import adapted, assert_close

import jlora


@jax.custom_vjp
def own_gradient(w, x):
    return x @ w


own_gradient.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, c: (kept[1].T @ c, c @ kept[0].T))
SIZES = jnp.array([2, 0, 1])
PRODUCTS = {
    "a gradient of its own": (lambda p, x: own_gradient(p["w"], x), (7, 5)),
    "ragged": (lambda p, x: lax.ragged_dot(x, p["w"], SIZES), (3, 7, 5)),
}


@pytest.mark.parametrize("first", ["both", "adapter", "activation"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_each_of_two_pullbacks_gives_its_own_gradient(name, first):
    fn, shape = PRODUCTS[name]
    params = {"w": jax.random.normal(jax.random.key(0), shape)}
    axes = {"w": jlora.Axes((1,), (2,), (0,)) if len(shape) == 3 else jlora.Axes((0,), (1,))}
    frozen, lora = adapted(params, axes)
    x = jax.random.normal(jax.random.key(1), (3, 7))
    weights = jnp.cos(jnp.arange(15.0)).reshape(3, 5)

    def pullbacks(fn):
        """Three, made before any is used, in an order that ends with the one asked for last."""
        of = {
            "both": lambda: jax.vjp(fn, lora, x),
            "adapter": lambda: jax.vjp(lambda lora: fn(lora, x), lora),
            "activation": lambda: jax.vjp(lambda x: fn(lora, x), x),
        }
        made = {each: of[each]()[1] for each in [first, *(each for each in of if each != first)]}
        return {each: made[each](weights) for each in of}

    lifted = jax.jit(lambda lora, x: jlora.lift(fn, strict=True)(frozen, lora, x))
    assert_close(pullbacks(lifted), pullbacks(lambda lora, x: fn(jlora.merge(frozen, lora), x)))
