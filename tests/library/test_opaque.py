"""Operations that jlora can't look into get the merged weight: slower, never different."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from laws import adapted, assert_close, check_law_1

import jlora
from jlora._lift import _walk

X = jax.random.normal(jax.random.key(1), (5, 7))
PARAMS = {"w": jax.random.normal(jax.random.key(0), (7, 11))}


def host_product(p, x):
    """A product computed by numpy, outside of JAX."""
    result = jax.ShapeDtypeStruct((5, 11), "float32")
    return jax.pure_callback(lambda w, x: np.asarray(x @ w, "float32"), result, p["w"], x)


def kernel_product(p, x):
    """A product in a Pallas kernel."""

    def kernel(x_ref, w_ref, out_ref):
        out_ref[...] = x_ref[...] @ w_ref[...]

    shape = jax.ShapeDtypeStruct((5, 11), "float32")
    return pl.pallas_call(kernel, out_shape=shape, interpret=True)(x, p["w"])


@pytest.mark.parametrize("fn", [host_product, kernel_product], ids=["callback", "pallas"])
def test_what_runs_elsewhere_gets_the_merged_weight(fn):
    frozen, lora = adapted(PARAMS)
    with pytest.warns(jlora.MaterialisedWarning, match=r"w was merged for `\w+` at test_opaque"):
        got = jax.jit(jlora.lift(fn))(frozen, lora, X)
    assert_close(got, fn(jlora.merge(frozen, lora), X))
    report = jlora.explain(fn, frozen, lora, X)
    assert (report.factored, report.materialised) == (0, 1)
    with pytest.raises(ValueError, match=r"strict: w would be merged for .* at test_opaque\.py:"):
        jlora.lift(fn, strict=True)(frozen, lora, X)


def test_a_kernel_that_no_adapter_enters_does_not_keep_the_rest_from_being_factored():
    def fn(p, x):
        return jnp.tanh(kernel_product({"w": p["still"]}, x)) @ p["w"]

    params = {"still": PARAMS["w"], "w": jax.random.normal(jax.random.key(2), (11, 3))}
    frozen, lora = adapted(params, targets="^w$")
    check_law_1(fn, frozen, lora, X, factored=1)


@pytest.mark.parametrize("parameter", ["gone", "new"])
def test_a_primitive_that_has_changed_falls_back_and_says_so(monkeypatch, parameter):
    """As a later JAX would have it: a parameter that the rule reads is gone, or one is new."""
    known = _walk.RULES["dot_general"]
    reads, carries = (
        (known.reads | {"colour"}, known.carries)
        if parameter == "gone"
        else (known.reads - {"precision"}, known.carries)
    )
    monkeypatch.setitem(_walk.RULES, "dot_general", _walk.Rule(known.apply, reads, carries))
    frozen, lora = adapted(PARAMS)
    why = "has no parameter colour" if parameter == "gone" else "does not know its parameter prec"
    with pytest.warns(jlora.MaterialisedWarning, match=why):
        got = jlora.lift(lambda p, x: x @ p["w"])(frozen, lora, X)
    assert_close(got, X @ jlora.merge(frozen, lora)["w"])


def test_equal_shapes_compile_once_and_other_adapters_of_the_same_rank_too():
    traces = []

    def fn(p, x):
        traces.append(None)
        return x @ p["w"]

    lifted = jax.jit(jlora.lift(fn))
    for seed, alpha in ((0, 5.0), (1, 5.0), (2, 9.0)):
        lifted(*adapted(PARAMS, seed=seed, alpha=alpha), X + seed)
    assert len(traces) == 1
    assert lifted._cache_size() == 1


def test_scopes_and_lines_of_the_model_are_in_the_compiled_program():
    def fn(p, x):
        with jax.named_scope("my_layer"):
            return jnp.tanh(x @ p["w"])

    frozen, lora = adapted(PARAMS)
    text = jax.jit(jlora.lift(fn, strict=True)).lower(frozen, lora, X).compile().as_text()
    products = [line for line in text.splitlines() if "dot_general" in line and "op_name" in line]
    assert len(products) >= 3  # x W, x A, (x A) B
    assert all("my_layer" in line for line in products)
    assert "test_opaque.py" in text
