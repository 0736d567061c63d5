"""What models do to weights on the way to a product: factored, and traced as a weight."""

import functools
import warnings

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from laws import adapted, assert_close, check_law_1

import jlora

KEY = jax.random.key
PARAMS = {
    "w": jax.random.normal(KEY(0), (6, 11)),
    "v": jax.random.normal(KEY(1), (6, 11)),
    "s": jax.random.normal(KEY(2), (3, 6, 11)),
}
AXES = {"w": jlora.Axes(), "v": jlora.Axes(), "s": jlora.Axes((1,), (2,), stack=(0,))}
X = jax.random.normal(KEY(3), (5, 6))
ROW = jax.random.normal(KEY(4), (11,))
EVEN = np.arange(6) % 2 == 0
EACH = functools.partial(jnp.einsum, "ebi,eio->ebo", jnp.stack([X, 2 * X, -X]))
METHODS = pytest.mark.parametrize("method", ["lora", "dora"])

PROGRAMS = {
    "rev of inputs": lambda p: X @ p["w"][::-1],
    "flip of outputs": lambda p: X @ jnp.flip(p["w"], 1),
    "pad of inputs": lambda p: jnp.pad(X, ((0, 0), (1, 2))) @ jnp.pad(p["w"], ((1, 2), (0, 0))),
    "pad of outputs with numbers": lambda p: (
        X @ jnp.pad(p["w"], ((0, 0), (3, 1)), constant_values=2.0)
    ),
    "tile": lambda p: jnp.concatenate([X, X], 1) @ jnp.tile(p["w"], (2, 3)),
    "repeat of outputs": lambda p: X @ jnp.repeat(p["w"], 2, axis=1),
    "repeat of inputs": lambda p: jnp.repeat(X, 2, axis=1) @ jnp.repeat(p["w"], 2, axis=0),
    "repeat by counts": lambda p: (
        X[:, :4] @ jnp.repeat(p["w"], jnp.array([1, 0, 2, 0, 1, 0]), axis=0, total_repeat_length=4)
    ),
    "roll of inputs": lambda p: X @ jnp.roll(p["w"], 2, axis=0),
    "roll of outputs": lambda p: X @ jnp.roll(p["w"], -3, axis=1),
    "roll by a traced number": lambda p: X @ jnp.roll(p["w"], jnp.int32(2), axis=1),
    "complex of two leaves": lambda p: (X.astype(complex) @ lax.complex(p["w"], p["v"])).real,
    "complex by 1j": lambda p: jnp.abs((X + 1j * X) @ (p["w"] + 1j * p["v"])) ** 2,
    "at set": lambda p: EACH(p["s"].at[1].set(p["w"])),
    "at set of an array": lambda p: EACH(p["s"].at[jnp.int32(1)].set(jnp.ones((6, 11)))),
    "at set in an array": lambda p: EACH(jnp.ones((3, 6, 11)).at[2].set(p["w"])),
    "at add": lambda p: X @ p["w"].at[jnp.array([0, 2])].add(0.5),
    "dynamic_update_slice": lambda p: EACH(
        lax.dynamic_update_slice(p["s"], p["w"][None], (1, 0, 0))
    ),
    "dynamic_slice from far below zero": lambda p: (
        X @ lax.dynamic_slice(p["w"], (jnp.int32(0), jnp.int32(-30)), (6, 4))
    ),
    "dynamic_update_slice from far below zero": lambda p: EACH(
        lax.dynamic_update_slice(p["s"], p["w"][None], (jnp.int32(-9), 0, 0))
    ),
    "a power of 1": lambda p: X @ lax.integer_pow(p["w"], 1),
    "dynamic_update_index": lambda p: EACH(
        lax.dynamic_update_index_in_dim(p["s"], p["w"], jnp.int32(2), 0)
    ),
    "where of rows": lambda p: X @ jnp.where(EVEN[:, None], 0, p["w"]),
    "where of a table": lambda p: jnp.where(EVEN[:, None], 0, p["w"])[jnp.array([0, 3, 5])],
    "where of columns": lambda p: X @ jnp.where(np.arange(11) > 4, p["w"], 0.0),
    "where of two": lambda p: X @ jnp.where(EVEN[:, None], p["v"], p["w"]),
    "platform_dependent": lambda p: lax.platform_dependent(
        p["w"], X, cpu=lambda w, x: x @ w, default=lambda w, x: x @ w * 2
    ),
    "weight norm": lambda p: X @ (ROW * p["w"] / jnp.linalg.norm(p["w"], axis=0)),
    "weight norm, kept dimensions": lambda p: (
        X @ (ROW * p["w"] / jnp.linalg.norm(p["w"], axis=0, keepdims=True))
    ),
    "standardised": lambda p: X @ ((p["w"] - p["w"].mean(0)) / jnp.sqrt(p["w"].var(0) + 1e-5)),
    "cond of weights": lambda p: X @ lax.cond(X[0, 0] > 0, lambda: p["w"], lambda: p["v"]),
    "reduce_precision": lambda p: X @ lax.reduce_precision(p["w"], 8, 23),
}


# Where a weight's magnitudes meet others, or none, it is merged: no sum of both has one.
TWO_MAGNITUDES = {
    "standardised",
    "complex of two leaves",
    "complex by 1j",
    "at add",
    "where of rows",
    "where of a table",
    "where of two",
}

SCALE_FREE = ("weight norm", "weight norm, kept dimensions", "standardised")


@METHODS
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_factored_and_its_axes_are_traced(name, method):
    fn = PROGRAMS[name]
    frozen, lora = adapted(PARAMS, AXES, rank=2, method=method)
    report = jlora.explain(fn, frozen, lora)
    assert bool(report.materialised) == (method == "dora" and name in TWO_MAGNITUDES)
    # DoRA's magnitudes cancel in a norm: their gradient is the rounding of what cancels
    tolerance = 1e-3 if method == "dora" and name in SCALE_FREE else 3e-5
    check_law_1(fn, frozen, lora, merged=report.materialised, tolerance=tolerance)
    axes = jlora.trace_axes(fn, PARAMS)
    used = {use.path for use in report.uses}
    assert used
    assert {path: axes[path] for path in used} == {path: AXES[path] for path in used}
    assert used <= axes.linear | axes.left_out.keys()


MERGED = {
    "elementwise": lambda p: X @ jnp.tanh(p["w"]),
    "a mask of entries": lambda p: X @ (p["w"] * (np.arange(66).reshape(6, 11) % 3 > 0)),
}


@pytest.mark.parametrize("name", MERGED)
def test_what_is_merged_is_adapted_all_the_same_and_split_says_why(name):
    fn, params = MERGED[name], {"w": PARAMS["w"]}
    axes = jlora.trace_axes(fn, params)
    config = jlora.LoraConfig(targets="w", rank=2)
    if "w" in axes.unclear:
        with pytest.warns(UserWarning, match=r"^w is adapted as \(in, out\), but how it is used"):
            frozen, lora = jlora.split(params, config, KEY(0), axes=axes)
    else:
        frozen, lora = jlora.split(params, config, KEY(0), axes=axes)
    assert lora["w"].axes == jlora.Axes()
    by_hand = jlora.split(params, config, KEY(0), axes={**axes, "w": jlora.Axes((1,), (0,))})[1]
    assert by_hand["w"].a.shape == (11, 2)
    frozen, lora = adapted(params, rank=2)
    report = jlora.explain(fn, frozen, lora)
    assert report.materialised
    check_law_1(fn, frozen, lora, merged=report.materialised)
    assert "w" not in axes.linear


def test_products_of_half_precision_may_be_accumulated_in_full():
    def fn(p):
        x, w = X.astype("bfloat16"), p["w"].astype("bfloat16")
        return lax.dot(x, w, preferred_element_type="float32")

    frozen, lora = adapted({"w": PARAMS["w"]}, rank=2)
    check_law_1(fn, frozen, lora, factored=1, tolerance=2e-2)
    kinds = {
        (eqn.params["preferred_element_type"], eqn.outvars[0].aval.dtype)
        for eqn in jax.make_jaxpr(jlora.lift(fn))(frozen, lora).jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    }
    assert kinds == {(np.dtype("float32"), np.dtype("float32"))}  # of the thin products too


PRECISIONS = pytest.mark.parametrize("precision", ["highest", "default"])


@PRECISIONS
def test_a_products_precision_is_that_of_its_thin_products(precision):
    fn = lambda p: jnp.dot(X, p["w"], precision=precision)  # noqa: E731
    frozen, lora = adapted({"w": PARAMS["w"]}, rank=2)
    jaxpr = jax.make_jaxpr(jlora.lift(fn))(frozen, lora).jaxpr
    asked = {e.params["precision"] for e in jaxpr.eqns if e.primitive.name == "dot_general"}
    assert len(asked) == 1


@METHODS
@pytest.mark.parametrize("kind", ["checkpointed", "bounded"])
def test_loops_that_checkpoint_themselves(kind, method):
    def fn(p, x):
        def body(carry):
            step, x = carry
            return step + 1, jnp.tanh(x @ p["w"] @ p["v"].T)

        return eqxi.while_loop(lambda c: c[0] < 3, body, (0, x), max_steps=16, kind=kind)[1]

    frozen, lora = adapted({"w": PARAMS["w"], "v": PARAMS["v"]}, method=method)
    check_law_1(fn, frozen, lora, X, tolerance=1e-4)


@pytest.mark.parametrize("outer", ["lora", "dora"])
@pytest.mark.parametrize("inner", ["lora", "dora"])
def test_an_adapter_over_an_adapter(outer, inner):
    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"].T

    params = {"w": PARAMS["w"], "v": PARAMS["v"]}
    frozen, first = adapted(params, method=inner)
    _, second = adapted(params, method=outer, seed=5)
    check_law_1(jlora.lift(fn), frozen, second, first, X, tolerance=5e-5)


@METHODS
def test_experts_under_vmap_over_adapters_and_batches(method):
    """JAX has no batching rule for ragged_dot; `lift` has."""

    def experts(p, x, sizes):
        return lax.ragged_dot(jnp.tanh(lax.ragged_dot(x, p["up"], sizes)), p["down"], sizes)

    params = {"up": PARAMS["s"], "down": jnp.swapaxes(PARAMS["s"], 1, 2)}
    axes = dict.fromkeys(params, AXES["s"])
    frozen, one = adapted(params, axes, rank=2, method=method)
    adapters = [one, jax.tree.map(lambda leaf: 0.5 * leaf, one)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
    xs, sizes = jnp.stack([X, 2 * X]), jnp.array([[2, 0, 3], [1, 1, 2]])
    lifted = jlora.lift(experts, strict=True)

    def loss(lora, x, sizes):
        return (lifted(frozen, lora, x, sizes) ** 2).sum()

    def merged_loss(lora, x, sizes):
        return (experts(jlora.merge(frozen, lora), x, sizes) ** 2).sum()

    got = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))(stacked, xs, sizes)
    by_itself = jax.jit(jax.grad(merged_loss, argnums=(0, 1)))
    for at, lora in enumerate(adapters):
        want = by_itself(lora, xs[at], sizes[at])
        assert_close(jax.tree.map(lambda leaf, at=at: leaf[at], got), want, 1e-4)


# lookups out of bounds


def looked_up(p, ids):
    return jnp.take(p["table"], ids, axis=0)  # fills with NaN


@METHODS
def test_rows_that_a_lookup_fills_reach_no_gradient(method):
    frozen, lora = adapted({"table": PARAMS["w"]}, rank=2, method=method)
    ids = jnp.array([0, 9, 2])

    def gradient(fn, *args):
        value, pull = jax.vjp(lambda lora: fn(lora), lora)
        sent = jnp.where(jnp.isnan(value), jnp.nan, jnp.ones_like(value))
        return value, pull(sent)[0]

    @jax.jit
    def both():
        lifted = jlora.lift(looked_up, strict=True)
        return (
            gradient(lambda lora: lifted(frozen, lora, ids)),
            gradient(lambda lora: looked_up(jlora.merge(frozen, lora), ids)),
        )

    (value, got), (merged, want) = both()
    assert_close((value, got), (merged, want))
    assert np.isnan(np.asarray(value)[1]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


# arrays without entries, in every kind of product and movement

NOTHING = {
    "dot_general": lambda p, x: x @ p["w"],
    "transposed": lambda p, x: (p["w"].T @ x.T).T,
    "lookup": lambda p, x: p["w"][jnp.zeros((0,), int)],
    "lookup that fills": lambda p, x: jnp.take(p["w"], jnp.zeros((0,), int), axis=0),
    "experts": lambda p, x: lax.ragged_dot(x, p["s"], jnp.array([0, 0, 0])),
    "experts by einsum": lambda p, x: jnp.einsum("bi,eio->ebo", x, p["s"]),
    "convolution of an empty batch": lambda p, x: lax.conv_general_dilated(
        jnp.zeros((0, 8, 6)), p["s"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    ),
    "scan of no steps": lambda p, x: lax.scan(lambda c, each: (c, each @ p["w"]), 0, x[:, None])[1],
    "an empty slice": lambda p, x: jnp.ones((2, 0)) @ p["w"][:0],
    "an empty split": lambda p, x: [x @ part for part in jnp.split(p["w"], [0, 4], axis=1)],
    "rev": lambda p, x: x @ p["w"][::-1],
    "tile": lambda p, x: x @ jnp.tile(p["w"], (1, 0)),
    "pad": lambda p, x: x @ jnp.pad(p["w"], ((0, 0), (1, 1))),
    "where": lambda p, x: x @ jnp.where(EVEN[:, None], 0, p["w"]),
}


@METHODS
@pytest.mark.parametrize("name", NOTHING)
def test_arrays_without_entries(name, method):
    axes = AXES | {"s": jlora.Axes((0, 1), (2,))} if "convolution" in name else AXES
    frozen, lora = adapted(PARAMS, axes, rank=2, method=method)
    x = jnp.zeros((0, 6))

    def both(fn):
        value, pull = jax.vjp(fn, lora)
        return value, pull(jax.tree.map(jnp.ones_like, value))[0]

    with warnings.catch_warnings(action="ignore", category=jlora.MaterialisedWarning):
        got = both(lambda lora: jlora.lift(NOTHING[name])(frozen, lora, x))
    want = both(lambda lora: NOTHING[name](jlora.merge(frozen, lora), x))
    assert_close(got, want)
    jlora.trace_axes(NOTHING[name], PARAMS, x)
    jlora.explain(NOTHING[name], frozen, lora, x)


# whole trees of one array, and leaves that are no weights


def test_a_tree_that_is_one_array(tmp_path):
    config = jlora.LoraConfig(targets="^$", rank=2)
    fn = lambda w, x: x @ w  # noqa: E731
    axes = jlora.trace_axes(fn, PARAMS["w"], X)
    assert axes == {"": jlora.Axes()}
    frozen, lora = adapted(PARAMS["w"], axes, targets="^$", rank=2)
    check_law_1(fn, frozen, lora, X, factored=1)
    jlora.checkpoint.save(tmp_path / "adapter", lora, config, base=frozen)
    again, _ = jlora.checkpoint.restore(tmp_path / "adapter", base=frozen)
    assert_close(again, lora, 0)
    with pytest.raises(ValueError, match="The tree is one array, whose path is ''"):
        jlora.split(PARAMS["w"], jlora.LoraConfig(targets="kernel"), KEY(0))


UNFIT = {
    "a scalar": (jnp.float32(3), "No leaf is a weight: none has two dimensions or more"),
    "a number": (3.0, "No leaf is a weight: none has two dimensions or more"),
    "a vector": (jnp.ones(5), "No leaf is a weight"),
    "no entries": (jnp.ones((0, 5)), r"w has shape \(0, 5\), and no entries: exclude it"),
    "complex": (jnp.ones((4, 5), complex), "w is of dtype complex64: expected a floating type"),
    "integers": (jnp.ones((4, 5), int), "w is of dtype int32: expected a floating type"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_leaf_that_is_no_weight_is_one_clear_error(kind):
    leaf, told = UNFIT[kind]
    with pytest.raises(ValueError, match=told):
        jlora.split({"w": leaf}, jlora.LoraConfig(targets="w", rank=2), KEY(0))


def test_a_leaf_of_float64_stays_one():
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((6, 11)))}
        frozen, lora = adapted(params, rank=2)
        merged = jlora.merge(frozen, lora)
        x = jnp.ones((5, 6), "float64")
        got = jlora.lift(lambda p, x: x @ p["w"], strict=True)(frozen, lora, x)
        assert merged["w"].dtype == got.dtype == np.dtype("float64")
        assert_close(got, x @ merged["w"], 1e-6)
