"""JAX's strict settings change nothing: the same verbs, the same values, in the same types."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from laws import adapted, assert_close, check_law_1, trained

import jlora
from jlora import checkpoint, peft

KEY = jax.random.key(0)


@contextlib.contextmanager
def refusing():
    """They can change no value: what can be traced under them is what it was."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@contextlib.contextmanager
def wide_and_finite():
    with jax.enable_x64(True), jax.debug_nans(True):
        yield


SETTINGS = {
    "no promotion": refusing,
    "64 bits, no NaN": wide_and_finite,
    "no jit": jax.disable_jit,
}
METHODS = ("lora", "dora")
STARTS = ("kaiming", "gaussian", "orthogonal", "pissa", "pissa_niter_2", "olora")


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


# Models that are strict themselves: every rank and type is written out.


def dense(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]


def half(p, x):
    w, v = (p[name].astype("bfloat16") for name in "wv")
    return jnp.tanh(x.astype("bfloat16") @ w) @ v


def tied(p, ids):
    return jnp.tanh(p["table"][ids]) @ p["table"].T


def scanned(p, x):
    def layer(x, layer):
        return jnp.tanh(x @ layer["w"] + layer["b"][None]), None

    return lax.scan(layer, x, p)[0]


def convolution(p, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, p["w"], (2, 1), "SAME", dimension_numbers=numbers)


def attention(p, x):
    query, key, value = (jnp.einsum("bld,dhk->bhlk", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(query @ jnp.swapaxes(key, -1, -2) / 2)
    return jnp.einsum("bhlk,hkd->bld", weights @ value, p["o"])


X = normal(5, 7)
IDS = jax.random.randint(KEY, (5,), 0, 13)
TABLE = {"table": normal(13, 7)}
TWO = {"w": normal(7, 11).at[:, 0].set(0), "b": normal(11), "v": normal(11, 5)}
LAYERS = {"w": normal(3, 7, 7) / 3, "b": normal(3, 7)}
HEADS = {name: normal(7, 3, 2, seed=seed) for seed, name in enumerate("qkv")}
MODELS = {  # the function, its parameters, its input, what is adapted
    "dense": (dense, TWO, X, {"targets": "w|v"}),
    "every kind": (
        lambda p, ids: dense(p, p["table"][ids]),
        {**TWO, **TABLE},
        IDS,
        {"targets": "w", "bias": "lora", "train": "v", "tokens": {"table": (1, 5)}},
    ),
    "a lookup": (tied, TABLE, IDS, {"targets": "table"}),
    "a scan": (scanned, LAYERS, X, {"targets": "w", "rank_pattern": {"w": (1, 3, 2)}}),
    "a convolution": (
        convolution,
        {"w": normal(3, 2, 5, 11)},
        normal(2, 6, 4, 5),
        {"targets": "w"},
    ),
    "attention": (attention, {**HEADS, "o": normal(3, 2, 7)}, normal(2, 4, 7), {"targets": "."}),
}
BFLOAT16 = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), TWO)
HALF = {  # in part or whole in bfloat16
    "half precision": (half, TWO, X, {"targets": "w|v"}),
    "bfloat16 weights": (dense, BFLOAT16, X.astype("bfloat16"), {"targets": "w|v"}),
    "bfloat16 all through": (
        dense,
        BFLOAT16,
        X.astype("bfloat16"),
        {"targets": "w|v", "dtype": "bfloat16"},
    ),
}


@functools.cache
def prepared(name, method):
    """The function, an adapter and an input as they are without any setting."""
    fn, params, x, options = (MODELS | HALF)[name]
    axes = jlora.trace_axes(fn, params, x)
    return fn, *adapted(params, axes, method=method, **options), x


def everything(fn, frozen, lora, x):
    """What lift, its gradient, merge and unmerge make of an adapter."""
    lifted = jlora.lift(fn, strict=True)
    outputs, pull = jax.vjp(lambda lora: lifted(frozen, lora, x), lora)
    merged = jlora.merge(frozen, lora)
    weights = {path: node for path, node in lora.items() if type(node) is jlora.LoraWeight}
    return outputs, pull(jnp.cos(outputs)), merged, jlora.unmerge(merged, weights)


@functools.cache
def as_ever(name):
    fn, *args = prepared(name, "dora")
    return jax.jit(functools.partial(everything, fn))(*args)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS | HALF)
def test_nothing_is_promoted_in_silence(name, method):
    fn, *args = prepared(name, method)
    want = jax.eval_shape(functools.partial(everything, fn), *args)
    with refusing():
        got = jax.eval_shape(functools.partial(everything, fn), *args)
    assert got == want


def check_the_same(name, setting):
    """By DoRA, which does what LoRA does and more."""
    fn, *args = prepared(name, "dora")
    with SETTINGS[setting]():
        got = jax.jit(functools.partial(everything, fn))(*args)
    assert_close(got, as_ever(name), 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_lift_and_merge_give_the_same(name):
    """Without jit: tests/wide, and dropout and the optimizer below."""
    check_the_same(name, "64 bits, no NaN")


STACK = {"w": normal(2, 7, 12).at[:, :, 0].set(0)}  # an output that is always zero


def start(init, method):
    axes = {"w": jlora.Axes((1,), (2,), (0,))}
    config = jlora.LoraConfig(targets="w", rank=4, init=init, method=method, dropout=0.5)
    return jlora.split(STACK, config, KEY, axes=axes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("init", STARTS)
def test_no_start_promotes_in_silence(init, method):
    split = functools.partial(start, init, method)
    with refusing():
        got = jax.eval_shape(split)
    assert got == jax.eval_shape(split)


def check_start(init, setting):
    """By DoRA, whose node is LoRA's and a magnitude."""
    want = start(init, "dora")
    with SETTINGS[setting]():
        frozen, lora = start(init, "dora")
        merged = jlora.merge(frozen, lora)
    assert_close((frozen, lora), want, 1e-4)
    assert_close(merged, STACK, 1e-5)


@pytest.mark.parametrize("init", ["kaiming", "olora"])
def test_a_start_draws_the_same(init):
    """Each start, without jit too, and starts from data: tests/wide."""
    check_start(init, "64 bits, no NaN")


def told(name):
    """What is said of the adapter, in words and numbers."""
    fn, frozen, lora, x = prepared(name, "dora")
    return {
        "axes": dict(jlora.trace_axes(fn, frozen, x)),
        "uses": jlora.explain(fn, frozen, lora, x).uses,
        "mask": jlora.mask(lora),
        "labels": jlora.labels({"frozen": frozen, "lora": lora}),
        "decay": jlora.decay_mask(lora),
        "summary": str(jlora.summary(frozen, lora)),
    }


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["every kind", "a scan", "attention"])
def test_the_same_is_told_of_it(name, setting):
    want = told(name)
    with SETTINGS[setting]():
        got = told(name)
    for one in (got, want):
        one["uses"] = [
            (use.path, use.operation, use.source, use.times, use.base_flops, use.adapter_flops)
            for use in one["uses"]
        ]
    assert got == want


@pytest.mark.parametrize("setting", SETTINGS)
def test_dropout_drops_the_same(setting):
    fn, params, x, _ = MODELS["a scan"]
    frozen, lora = adapted(params, jlora.trace_axes(fn, params, x), targets="w", dropout=0.5)

    def run():
        return jax.jit(jlora.lift(fn, strict=True))(frozen, lora, x, dropout_key=KEY)

    want = run()
    with SETTINGS[setting]():
        assert_close(run(), want, 1e-5)
    assert not np.allclose(want, fn(jlora.merge(frozen, lora), x))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["every kind", "bfloat16 all through"])
def test_the_optimizer_takes_the_same_step(name, setting):
    """With LoRA+, and a gradient of every leaf."""
    _, frozen, lora, _ = prepared(name, "dora")
    tree = {"frozen": frozen, "lora": lora}
    tx = jlora.optimizer(optax.chain(optax.sgd(1e-2), jlora.lora_plus(4)))

    @jax.jit
    def step(tree):
        updates, _ = tx.update(jax.tree.map(jnp.cos, tree), tx.init(tree), tree)
        return optax.apply_updates(tree, updates)

    want = step(tree)
    with SETTINGS[setting]():
        got = step(tree)
    assert_close(got, want, 1e-6)
    for one, other in zip(jax.tree.leaves(got["frozen"]), jax.tree.leaves(frozen), strict=True):
        assert np.array_equal(one, other)


# Files


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_checkpoint_gives_back_what_it_got(setting, tmp_path):
    _, frozen, lora, _ = prepared("every kind", "dora")
    options = MODELS["every kind"][3]
    config = jlora.LoraConfig(rank=3, alpha=5.0, method="dora", **options)
    with SETTINGS[setting]():
        checkpoint.save(tmp_path / "adapter", lora, config, base=frozen)
        read, same = checkpoint.restore(tmp_path / "adapter", base=frozen)
    assert_close(read, lora, 0)
    assert same == config


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_file_of_peft_gives_back_what_it_got(setting, tmp_path):
    _, frozen, lora, _ = prepared("dense", "dora")
    config = jlora.LoraConfig(targets="w|v", rank=3, alpha=5.0, method="dora")
    names = {"w": "net.0", "v": "net.2"}
    with SETTINGS[setting]():
        peft.save(tmp_path / "adapter", lora, config, frozen, names=names)
        read, _ = peft.load(tmp_path / "adapter", frozen, names=names)
    assert_close(read, lora, 1e-6)


# 64 bits all through


def wide(tree):
    """The same values in float64; integers stay."""
    return jax.tree.map(
        lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf, tree
    )


@pytest.mark.parametrize(
    ("name", "method"), [("dense", "lora"), *((name, "dora") for name in MODELS)]
)
def test_float64_weights_keep_their_precision(name, method):
    fn, params, x, options = MODELS[name]
    with jax.enable_x64(True):
        params, x = wide((params, x))
        axes = jlora.trace_axes(fn, params, x)
        frozen, lora = adapted(params, axes, method=method, dtype="float64", **options)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == {"float64"}
        trains = jax.tree.map(lambda leaf, it: it and leaf.dtype.name, lora, jlora.mask(lora))
        assert set(jax.tree.leaves(trains)) == {"float64", False}
        check_law_1(fn, frozen, lora, x, tolerance=1e-10)


@pytest.mark.parametrize("init", STARTS)
def test_a_start_in_float64_leaves_the_function_alone_to_its_precision(init):
    with jax.enable_x64(True):
        params = {"w": wide(normal(7, 12))}
        config = jlora.LoraConfig(targets="w", rank=4, init=init, dtype="float64")
        frozen, lora = jlora.split(params, config, KEY)
        merged = jlora.merge(frozen, lora)
        assert merged["w"].dtype == "float64"
        np.testing.assert_allclose(merged["w"], params["w"], rtol=0, atol=1e-13)
        node = trained(lora)["w"]
        by_hand = np.asarray(frozen["w"]) + float(node.scaling) * (
            np.asarray(node.a) @ np.asarray(node.b)
        )
        got = jlora.lift(lambda p, x: x @ p["w"])(frozen, {"w": node}, np.eye(7))
        np.testing.assert_allclose(got, by_hand, rtol=0, atol=1e-13)
