"""`explain` tells of every use of every adapted leaf, on shapes alone."""

import warnings

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from laws import adapted

import jlora

CONFIG = jlora.LoraConfig(targets="w|v|s|unused", rank=3)
PARAMS = {
    "w": jax.ShapeDtypeStruct((7, 11), "float32"),
    "v": jax.ShapeDtypeStruct((11, 7), "float32"),
    "s": jax.ShapeDtypeStruct((4, 7, 7), "float32"),
    "unused": jax.ShapeDtypeStruct((7, 11), "float32"),
}
X = jax.ShapeDtypeStruct((5, 7), "float32")


def fn(p, x):
    x = jnp.tanh(x @ p["w"]) @ p["v"]
    x, _ = lax.scan(lambda x, s: (jnp.tanh(x @ s), None), x, p["s"])
    return x + jnp.sin(p["w"]).sum()


def report():
    axes = {**dict.fromkeys(PARAMS, jlora.Axes()), "s": jlora.Axes((1,), (2,), stack=(0,))}
    make = lambda p, key: jlora.split(p, CONFIG, key, axes=axes)  # noqa: E731
    frozen, lora = jax.eval_shape(make, PARAMS, jax.random.key(0))
    return jlora.explain(fn, frozen, lora, X)


def test_every_use_is_told_with_its_line_and_verdict():
    uses = [(use.path, use.operation, use.factored, use.times) for use in report().uses]
    assert uses == [
        ("w", "dot_general", True, 1),
        ("v", "dot_general", True, 1),
        ("s", "dot_general", True, 4),
        ("w", "sin", False, 1),
    ]
    lines = [use.source for use in report().uses]
    assert all(line.startswith("test_explain.py:") and "fn" in line for line in lines)
    assert (report().factored, report().materialised) == (3, 1)
    assert report().uses[3].why == "jlora has no rule for it"


def test_leaves_that_nothing_uses_are_named():
    assert report().unused == ("unused",)
    assert "unused: used by no operation" in str(report())


def test_what_is_not_adapted_as_it_is_used_is_told():
    """Without axes a stack of norms is no matrix, and a weight may act from the left."""

    def model(p, x):
        x, _ = lax.scan(lambda x, layer: (x * layer["norm"] @ layer["w"], None), x, p["layers"])
        return x @ p["left"].T + jnp.sin(p["formed"]).sum()

    params = {
        "layers": {"norm": jnp.ones((3, 7)), "w": jnp.ones((3, 7, 7))},
        "left": jnp.ones((11, 7)),
        "formed": jnp.ones((7, 7)),
        "spare": jnp.ones((7, 7)),
    }
    seen = jlora.trace_axes(model, params, X)
    config = jlora.LoraConfig(targets="norm|w|left|formed|spare", rank=2)
    by_hand = {"layers/w": seen["layers/w"]}
    frozen, lora = jlora.split(params, config, jax.random.key(0), axes=by_hand)
    told = jlora.explain(model, frozen, lora, X)
    assert set(told.otherwise) == {"layers/norm", "left"}  # the others' rows say it
    for report in (told, jlora.summary(frozen, lora, seen)):
        assert "uses them (give split axes=jlora.trace_axes(fn, params, *args)): " in str(report)
        assert "left (it is Axes(inputs=(1,), outputs=(0,), stack=()), not Axes(" in str(report)
        assert "layers/norm (no product uses it: a stack of vectors?)" in str(report)
    config = jlora.LoraConfig(targets="norm|w|left", rank=2)
    frozen, lora = jlora.split(params, config, jax.random.key(0), axes=seen)
    assert sorted(lora) == ["layers/w", "left"]
    for report in (jlora.explain(model, frozen, lora, X), jlora.summary(frozen, lora, seen)):
        assert not report.otherwise
        assert "not adapted" not in str(report)
    assert not jlora.summary(frozen, lora).otherwise


def test_the_costs_are_those_of_the_products():
    first, _, scanned, sine = report().uses
    assert first.base_flops == 2 * 5 * 7 * 11
    thin = 2 * 5 * 3 * (7 + 11) + 5 * 11  # x A, (x A) B, and the sum
    assert first.adapter_flops == thin
    assert first.adapter_bytes == 4 * (7 * 3 + 3 * 11 + 5 * 11)  # A, B, and the result
    assert scanned.base_flops == 2 * 5 * 7 * 7
    assert sine.adapter_flops == 2 * 7 * 11 * 3
    assert sine.adapter_bytes == 4 * 7 * 11


def test_it_prints_as_a_table_with_one_line_of_sums():
    lines = str(report()).splitlines()
    assert " ".join(lines[0].split()) == "leaf operation model's line times base adapter how"
    assert len(lines) == 1 + 4 + 1 + 1
    assert lines[3].split()[:2] == ["s", "dot_general"]
    assert "factored: the base product and two thin ones" in lines[1]
    assert "MERGED: jlora has no rule for it" in lines[4]
    assert lines[-1].startswith("4 adapted leaves, 4 uses: 3 factored, 1 materialised. ")
    base = 2 * 5 * (7 * 11 + 11 * 7 + 4 * 7 * 7)
    assert f"{base / 1000:.3g} kFLOP with W" in lines[-1]


def test_loops_within_loops_multiply():
    def nested(p, x):
        inner = lambda x, _: (x @ p["q"], None)  # noqa: E731
        outer = lambda x, _: (lax.scan(inner, x, length=3)[0], None)  # noqa: E731
        return lax.scan(outer, x, length=5)[0]

    frozen, lora = adapted({"q": jnp.ones((7, 7))})
    [use] = jlora.explain(nested, frozen, lora, X).uses
    assert use.times == 15


def test_one_jitted_layer_called_for_two_leaves_is_two_uses():
    layer = jax.jit(lambda w, x: jnp.tanh(x @ w))
    frozen, lora = adapted({"one": jnp.ones((7, 7)), "two": jnp.ones((7, 7))})
    uses = jlora.explain(lambda p, x: layer(p["two"], layer(p["one"], x)), frozen, lora, X).uses
    assert [use.path for use in uses] == ["one", "two"]


def test_both_branches_are_told():
    frozen, lora = adapted({"q": jnp.ones((7, 7))})
    branches = lambda p, x: lax.cond(x[0, 0] > 0, lambda: x @ p["q"], lambda: -x @ p["q"])  # noqa: E731
    assert jlora.explain(branches, frozen, lora, X).factored == 2


def test_nothing_runs():
    def loud(p, x):
        jax.debug.callback(lambda: pytest.fail("ran"))
        return x @ p["q"]

    frozen, lora = adapted({"q": jnp.ones((7, 7))})
    assert jlora.explain(loud, frozen, lora, jnp.ones((5, 7))).factored == 1


def test_a_wrong_tree_is_told():
    _, lora = adapted({"q": jnp.ones((7, 7))})
    with pytest.raises(ValueError, match="the adapter does not fit the parameters"):
        jlora.explain(fn, {"q": jnp.ones((7, 8))}, lora, X)


def test_the_summary_counts_parameters_and_bytes():
    frozen, lora = adapted({"w": jnp.ones((7, 11), "bfloat16"), "b": jnp.ones(11, "bfloat16")})
    counted = jlora.summary(frozen, lora)
    assert (counted.trainable, counted.trainable_bytes) == (3 * (7 + 11), 4 * 3 * (7 + 11))
    assert (counted.frozen, counted.frozen_bytes) == (88, 176)
    assert (counted.leaves, counted.rank, counted.total) == (1, (3, 3), 142)
    assert str(counted) == (
        "trainable 54 of 142 parameters (38.028 %) in 1 adapted leaves of rank 3; "
        "216 bytes beside 176 bytes frozen"
    )


JOINED = {
    "side by side": lambda p, x: jnp.split(x @ jnp.concatenate([p["q"], p["k"], p["v"]], 1), 3, 1),
    "stacked": lambda p, x: jnp.einsum("bi,eio->ebo", x, jnp.stack([p["q"], p["k"], p["v"]])),
    "summed": lambda p, x: x @ (p["q"] + p["k"] + p["v"]),
    "gates": lambda p, x: (
        jnp.concatenate([x, x], 1) @ jnp.concatenate([p["q"], jnp.concatenate([p["k"]], 1)], 0)
        + x @ p["v"]
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_each_of_the_leaves_that_were_joined_has_its_use(name):
    frozen, lora = adapted({path: jnp.ones((7, 7)) for path in "qkv"})
    report = jlora.explain(JOINED[name], frozen, lora, X)
    assert {use.path for use in report.uses} == {"q", "k", "v"}
    assert report.unused == ()
    assert all(use.factored for use in report.uses)


def lines(fn, frozen, lora):
    """The line of each use that is not factored."""
    report = jlora.explain(fn, frozen, lora, X)
    return {use.source for use in report.uses if not use.factored}


INSIDE = {
    "nn.softmax": lambda p, x: x @ jax.nn.softmax(p["q"]),
    "nn.gelu": lambda p, x: x @ jax.nn.gelu(p["q"]),
    "jnp.median": lambda p, x: x * jnp.median(p["q"]),
    "jnp.linalg.det": lambda p, x: x * jnp.linalg.det(p["q"]),
    "jnp.var": lambda p, x: x * jnp.var(jnp.tanh(p["q"])),
}


@pytest.mark.parametrize("name", INSIDE)
def test_the_line_is_the_models_own_inside_jaxs_functions_too(name):
    frozen, lora = adapted({"q": jnp.eye(7)})
    INSIDE[name](frozen, jnp.ones(X.shape))  # traced before: JAX keeps that trace, and its lines
    line = INSIDE[name].__code__.co_firstlineno
    [source] = lines(INSIDE[name], frozen, lora)
    assert source.startswith(f"test_explain.py:{line} ")


def test_positions_count_from_the_end_as_in_grad():
    frozen, lora = adapted({"q": jnp.ones((7, 7))})
    report = jlora.explain(lambda x, p: x @ p["q"], X, frozen, lora, argnums=-1)
    assert report.factored == 1
    axes = jlora.trace_axes(lambda x, p: x @ p["q"], X, frozen, argnums=-1)
    assert axes == {"q": jlora.Axes()}


def test_a_step_with_dropout_is_explained_as_it_runs():
    frozen, lora = adapted({"w": jnp.ones((7, 5))}, dropout=0.5)
    key = jax.random.key(0)
    with_key = jlora.explain(lambda p, x: x @ p["w"], frozen, lora, X, dropout_key=key)
    assert (with_key.factored, with_key.materialised) == (1, 0)
    takes_it = jlora.explain(
        lambda p, x, dropout_key: x @ p["w"] * jax.random.uniform(dropout_key), frozen, lora, X,
        dropout_key=key,
    )  # fmt: skip
    assert takes_it.factored == 1


def test_each_leaf_of_a_shared_trace_is_named():
    """Equal calls of a jitted function are traced once, whatever leaves they get."""
    params = {name: jnp.ones((7, 7)) for name in "abc"}
    frozen, lora = adapted(params)
    turned = jax.jit(lambda w: jnp.sin(w).T)
    both = jax.jit(lambda v, w: v + jnp.sin(w))

    def fn(p):
        return turned(p["a"]) + turned(p["b"]) + both(p["c"], p["c"]) + both(p["a"], p["b"])

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        jlora.lift(fn)(frozen, lora)
    named = [str(each.message).partition(" was merged for `sin`")[0] for each in told]
    assert [name for name in named if len(name) == 1] == ["a", "b", "c", "b"]  # b twice: two places
    report = jlora.explain(fn, frozen, lora)
    assert [use.path for use in report.uses if use.operation == "sin"] == ["a", "b", "c", "b"]


def test_squares_keep_their_factors_beside_dropout():
    frozen, lora = adapted({"w": jnp.ones((7, 5))}, dropout=0.5)
    normed = jlora.lift(lambda p, x: x @ p["w"] / jnp.sqrt((p["w"] * p["w"]).sum(0)), strict=True)
    x = jnp.ones((3, 7))
    assert normed(frozen, lora, x, dropout_key=jax.random.key(0)).shape == (3, 5)
