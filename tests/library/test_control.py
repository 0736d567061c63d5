"""Law 1 through control flow and transformations: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from laws import adapted, assert_close, check_law_1
from test_products import AXES, PARAMS, X, Y

import jlora

SQUARE = {"w": PARAMS["w"], "v": PARAMS["v"], "s": PARAMS["s"]}


def turn(x, w, v):
    """From (n, 7) to (n, 7) through both weights, bounded."""
    return jnp.tanh(x @ w) @ v.T / 4


CONTROL = {
    "jit": lambda p: jax.jit(lambda w: X @ w)(p["w"]),
    "jit that returns a weight": lambda p: X @ jax.jit(lambda w: w.T)(p["w"]).T,
    "jit with a static argument": lambda p: jax.jit(lambda w, n: (X @ w) * n, static_argnums=1)(
        p["w"], 2
    ),
    "scan over a stack": lambda p: lax.scan(lambda c, w: (c + X @ w, c), 0 * Y, p["s"]),
    "scan, reversed and unrolled": lambda p: lax.scan(
        lambda c, w: (jnp.tanh(c + X @ w), c), 0 * Y, p["s"], reverse=True, unroll=2
    ),
    "scan with a constant weight": lambda p: lax.scan(
        lambda c, _: (turn(c, p["w"], p["v"]), None), X, length=3
    )[0],
    "scan with a weight carried unchanged": lambda p: lax.scan(
        lambda c, _: ((turn(c[0], c[1], p["v"]), c[1]), None), (X, p["w"]), length=3
    )[0][0],
    "scan over weights stacked just before": lambda p: lax.scan(
        lambda c, w: (c, X @ w), 0, jnp.stack([p["w"], p["v"]])
    )[1],
    "scan that returns its weights": lambda p: jnp.einsum(
        "bi,eio->ebo", X, lax.scan(lambda c, w: (c, 2 * w), 0, p["s"])[1]
    ),
    "fori_loop": lambda p: lax.fori_loop(0, 3, lambda i, c: turn(c, p["w"], p["v"]), X),
    "fori_loop with weights in the carry": lambda p: lax.fori_loop(
        0, 3, lambda i, c: (turn(*c), c[1], c[2]), (X, p["w"], p["v"])
    )[0],
    "cond": lambda p: lax.cond(
        X[0, 0] > 0, lambda w, v: X @ w, lambda w, v: X @ v * 2, p["w"], p["v"]
    ),
    "switch on layers": lambda p: lax.switch(
        2, [lambda s, k=k: X @ s[k] for k in range(3)], p["s"]
    ),
    "checkpoint": lambda p: jax.checkpoint(lambda w: jnp.sin(X @ w / 3))(p["w"]),
    "checkpoint with a policy": lambda p: jax.checkpoint(
        lambda w: jnp.sin(X @ w / 3), policy=jax.checkpoint_policies.dots_saveable
    )(p["w"]),
    "scan of checkpoints": lambda p: lax.scan(
        jax.checkpoint(lambda c, w: (jnp.tanh(c + X @ w / 3), None), prevent_cse=False),
        0 * Y,
        p["s"],
    )[0],
    "vmap inside": lambda p: jax.vmap(lambda w: X @ w)(p["s"]),
    "a custom derivative beside": lambda p: jax.nn.relu(X @ p["w"]),
}


@pytest.mark.parametrize("name", CONTROL)
def test_control_flow_keeps_the_weight_factored(name):
    frozen, lora = adapted(SQUARE, {path: AXES[path] for path in SQUARE})
    check_law_1(CONTROL[name], frozen, lora)


def test_while_loop_runs_with_weights_as_constants():
    frozen, lora = adapted(SQUARE, {path: AXES[path] for path in SQUARE})

    def fn(p):
        start = (jnp.int32(0), X)
        return lax.while_loop(
            lambda c: (c[0] < 3) & ((X @ p["w"])[0, 0] < 1e9),
            lambda c: (c[0] + 1, turn(c[1], p["w"], p["v"])),
            start,
        )[1]

    got = jlora.lift(fn, strict=True)(frozen, lora)
    assert_close(got, fn(jlora.merge(frozen, lora)), 2e-5)


def test_a_weight_that_a_loop_changes_is_merged():
    frozen, lora = adapted(SQUARE, {path: AXES[path] for path in SQUARE})
    check_law_1(
        lambda p: lax.fori_loop(0, 3, lambda i, c: (c[0] + X @ c[1], c[1] / 2), (0 * Y, p["w"]))[0],
        frozen,
        lora,
        merged=1,
    )


@jax.custom_vjp
def tripled(w):
    return X @ w


tripled.defvjp(lambda w: (tripled(w), None), lambda _, g: (3 * X.T @ g,))


@jax.custom_jvp
def quintupled(w):
    return X @ w


quintupled.defjvp(lambda primals, tangents: (quintupled(*primals), 5 * X @ tangents[0]))


@pytest.mark.parametrize("fn", [tripled, quintupled])
def test_a_function_with_its_own_derivative_keeps_it(fn):
    frozen, lora = adapted({"w": PARAMS["w"]})
    check_law_1(lambda p: fn(p["w"]), frozen, lora, factored=1)


def layers(p, x):
    return lax.scan(lambda c, w: (jnp.tanh(c @ w @ p["v"].T / 4), None), x, p["s"])[0]


LAYER_AXES = {"v": AXES["v"], "s": AXES["s"]}
LAYERS = {"v": PARAMS["v"], "s": PARAMS["s"]}


def test_vmap_over_examples_adapters_and_both():
    frozen, lora = adapted(LAYERS, LAYER_AXES)
    other = jax.tree.map(lambda leaf: 0.5 * leaf, lora)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), lora, other)
    lifted = jlora.lift(layers, strict=True)
    xs = jnp.stack([X, 2 * X])
    one_by_one = [[lifted(frozen, node, x) for x in xs] for node in (lora, other)]

    over_x = jax.vmap(lifted, in_axes=(None, None, 0))(frozen, lora, xs)
    assert_close(over_x, jnp.stack(one_by_one[0]), 1e-5)
    over_lora = jax.vmap(lifted, in_axes=(None, 0, None))(frozen, both, X)
    assert_close(over_lora, jnp.stack([row[0] for row in one_by_one]), 1e-5)
    each_its_own = jax.vmap(lifted, in_axes=(None, 0, 0))(frozen, both, xs)
    assert_close(each_its_own, jnp.stack([one_by_one[0][0], one_by_one[1][1]]), 1e-5)


def test_adapters_of_different_alpha_train_side_by_side():
    frozen, lora = adapted(LAYERS, LAYER_AXES)
    louder = {
        path: jlora.LoraWeight(node.a, node.b, node.scaling * 4, node.axes)
        for path, node in lora.items()
    }
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), lora, louder)
    lifted = jlora.lift(layers, strict=True)
    gradient = jax.grad(lambda lora: (lifted(frozen, lora, X) ** 2).mean())
    together = jax.vmap(gradient)(both)
    for at, one in enumerate((lora, louder)):
        assert_close(jax.tree.map(lambda leaf, at=at: leaf[at], together), gradient(one), 1e-5)


def test_a_changed_scaling_does_not_trace_again():
    frozen, lora = adapted(LAYERS, LAYER_AXES)
    traces = []

    def fn(p, x):
        traces.append(1)
        return layers(p, x)

    lifted = jax.jit(jlora.lift(fn))
    first = lifted(frozen, lora, X)
    changed = {
        path: jlora.LoraWeight(node.a, node.b, node.scaling * 2, node.axes)
        for path, node in lora.items()
    }
    second = lifted(frozen, changed, X)
    assert len(traces) == 1
    assert jnp.abs(first - second).max() > 1e-3


def test_arguments_keep_their_kind():
    frozen, lora = adapted({"w": PARAMS["w"]})

    def fn(scale, p, x, mode, *, bias=None, train, activation=jnp.tanh):
        assert isinstance(train, bool)
        assert mode == "sum"
        assert bias is None
        out = activation(x @ p["w"]) * scale
        return {"out": out, "mode": mode, "train": train, "none": None, "fn": activation}

    lifted = jlora.lift(fn, argnums=1, strict=True)
    got = lifted(2.0, frozen, lora, X, "sum", train=True)
    expected = fn(2.0, jlora.merge(frozen, lora), X, "sum", train=True)
    assert_close(got.pop("out"), expected.pop("out"), 1e-5)
    assert got == expected


def test_jit_of_a_lifted_function_knows_its_static_names():
    frozen, lora = adapted({"w": PARAMS["w"]})

    def fn(params, x, power):
        return (x @ params["w"]) ** power

    lifted = jax.jit(jlora.lift(fn), static_argnames="power")
    assert_close(lifted(frozen, lora, X, power=2), fn(jlora.merge(frozen, lora), X, 2), 1e-5)


def test_the_function_is_traced_by_its_own_name():
    frozen, lora = adapted({"w": PARAMS["w"]})

    @functools.partial(jax.jit)
    def my_projection(w):
        with jax.named_scope("my_scope"):
            return X @ w

    lowered = jax.jit(jlora.lift(lambda p: my_projection(p["w"]))).lower(frozen, lora)
    text = lowered.compile().as_text()
    assert "my_projection" in text
    assert "my_scope" in text
    assert "test_control.py" in lowered.as_text(debug_info=True)


def test_what_does_not_fit_is_named_before_anything_runs():
    frozen, lora = adapted({"w": PARAMS["w"]})
    lifted = jlora.lift(lambda p: p["w"])
    with pytest.raises(ValueError, match=r"takes .frozen, lora. as arguments 0 and 1"):
        lifted(frozen)
    with pytest.raises(ValueError, match="is the lora dict that split returns, got ArrayImpl"):
        lifted(frozen, X)
    with pytest.raises(ValueError, match=r"w: the adapter is for shape \(7, 11\), the leaf has"):
        lifted({"w": jnp.ones((7, 12))}, lora)
    with pytest.raises(ValueError, match=r"w: no such leaf\. The nearest: ww"):
        lifted({"ww": jnp.ones((7, 11))}, lora)
    with pytest.raises(ValueError, match=r"Stacked adapters go through jax\.vmap"):
        lifted(frozen, jax.tree.map(lambda leaf: leaf[None], lora))
