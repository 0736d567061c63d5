"""A cast weight: factored, rounded as the model rounds it, and exact at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import adapted, check_law_1

import jlora

W = jax.random.normal(jax.random.key(0), (7, 11))
X = jax.random.normal(jax.random.key(1), (5, 7))

CASTS = {
    "to half": lambda p: X.astype("bfloat16") @ p["w"].astype("bfloat16"),
    "to half, summed in float32": lambda p: jnp.dot(
        X.astype("bfloat16"), p["w"].astype("bfloat16"), preferred_element_type="float32"
    ),
    "to half and back": lambda p: X @ p["w"].astype("bfloat16").astype("float32"),
    "to half, moved, and back": lambda p: (
        X @ (p["w"].astype("float16").T * jnp.float16(3)).T.astype("float32")
    ),
    "to float8 and back": lambda p: X @ p["w"].astype("float8_e4m3fn").astype("float32"),
}


@pytest.mark.parametrize("name", CASTS)
def test_a_fresh_adapter_keeps_the_models_rounding(name):
    """To the last bit: the base's cast rounds, so the lifted function's does."""
    fn = CASTS[name]
    frozen, lora = jlora.split({"w": W}, jlora.LoraConfig(targets="w", rank=2), jax.random.key(2))
    assert np.array_equal(jlora.lift(fn, strict=True)(frozen, lora), fn({"w": W}))


@pytest.mark.parametrize("name", list(CASTS)[:4])
def test_a_cast_weight_stays_factored_and_right_within_the_cast(name):
    frozen, lora = adapted({"w": W})
    report = check_law_1(CASTS[name], frozen, lora, factored=1, tolerance=3e-2)
    assert report.uses[0].operation == "dot_general"


def test_half_weights_cast_up_meet_factors_in_full():
    """Nothing of a float32 adapter is lost where the model computes in float32."""
    fn = lambda p: X @ p["w"].astype("float32")  # noqa: E731
    frozen, lora = adapted({"w": W.astype("bfloat16")})
    exact = X @ (frozen["w"].astype("float32") + lora["w"].delta())
    got = jlora.lift(fn, strict=True)(frozen, lora)
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


def test_a_cast_to_whole_numbers_is_of_the_merged_weight():
    frozen, lora = adapted({"w": 3 * W, "v": W})
    fn = lambda p: (X @ p["v"], p["w"].astype("int32"))  # noqa: E731
    check_law_1(fn, frozen, lora, merged=1, factored=1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_models_stay_within_their_rounding(dtype):
    """Against float32: the lifted function is as near to the exact result as the merged one."""
    frozen, lora = adapted({"w": W.astype(dtype), "v": W.astype(dtype)})
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"].T  # noqa: E731
    merged = lambda lora, frozen: fn(jlora.merge(frozen, lora), X.astype(frozen["w"].dtype))  # noqa: E731
    lifted = lambda lora, frozen: jlora.lift(fn, strict=True)(frozen, lora, X.astype(dtype))  # noqa: E731
    full = jax.tree.map(lambda leaf: leaf.astype("float32"), frozen)

    def value_and_gradients(of, frozen):
        value, grads = jax.value_and_grad(lambda lora: of(lora, frozen).astype("float32").sum())(
            lora
        )
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves((value, grads))])

    exact = value_and_gradients(merged, full)
    off = [jnp.abs(value_and_gradients(of, frozen) - exact).max() for of in (lifted, merged)]
    assert off[0] < 4 * off[1] + 1e-3
