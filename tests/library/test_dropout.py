"""Dropout on the adapter's input: none without a key, and never twice the same mask."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from laws import adapted, assert_close

import jlora

KEY = jax.random.key(7)
RATE = 0.25
SIZE = 8


def revealing(*stack, rate=RATE):
    """(frozen, lora) whose adapter gives back what it gets: W = 0, A = B = 1."""
    dims = len(stack)
    eye = jnp.broadcast_to(jnp.eye(SIZE), (*stack, SIZE, SIZE))
    axes = jlora.Axes((dims,), (dims + 1,), tuple(range(dims)))
    node = jlora.LoraWeight(
        eye, eye, jnp.float32(1), axes, dropout=None if rate == 0 else jnp.float32(rate)
    )
    return {"w": jnp.zeros((*stack, SIZE, SIZE))}, {"w": node}


def masks(fn, *stack, key=KEY, jit=True):
    """What ``fn(params, ones)`` gives through the revealing adapter."""
    lifted = jlora.lift(fn, strict=True)
    lifted = jax.jit(lifted) if jit else lifted
    return lifted(*revealing(*stack), jnp.ones((40, SIZE)), dropout_key=key)


def assert_masks(values, rate=RATE):
    """Zeros, and ones made larger; about as many as the rate says; no two alike."""
    values = [np.asarray(value) for value in values]
    for value in values:
        kept = value != 0
        np.testing.assert_allclose(value[kept], 1 / (1 - rate), rtol=1e-6)
        assert abs(kept.mean() - (1 - rate)) < 0.1
    for at, one in enumerate(values):
        assert not any(np.array_equal(one, other) for other in values[at + 1 :])


def test_each_entry_is_left_out_or_made_larger():
    assert_masks([masks(lambda p, x: x @ p["w"])])


def test_without_a_key_or_a_rate_nothing_is_left_out():
    assert np.array_equal(masks(lambda p, x: x @ p["w"], key=None), np.ones((40, SIZE)))
    frozen, lora = revealing(rate=0.0)
    out = jlora.lift(lambda p, x: x @ p["w"])(frozen, lora, jnp.ones((3, SIZE)), dropout_key=KEY)
    assert np.array_equal(out, np.ones((3, SIZE)))


def test_the_base_product_gets_the_activation_whole():
    frozen, lora = adapted({"w": jax.random.normal(KEY, (7, 5))}, dropout=0.5)
    silent = {"w": dataclasses.replace(lora["w"], b=jnp.zeros_like(lora["w"].b))}
    x = jax.random.normal(KEY, (3, 7))
    apply = jlora.lift(lambda p, x: x @ p["w"])
    assert_close(apply(frozen, silent, x, dropout_key=KEY), x @ frozen["w"])
    assert not np.allclose(apply(frozen, lora, x, dropout_key=KEY), apply(frozen, lora, x))


def test_each_use_has_its_own_mask():
    assert_masks(masks(lambda p, x: (x @ p["w"], x @ p["w"], x @ p["w"].T)))


def test_each_leaf_has_its_own_mask():
    frozen, lora = revealing()
    two = [{"v": tree["w"], "w": tree["w"]} for tree in (frozen, lora)]
    apply = jlora.lift(lambda p, x: (x @ p["v"], x @ p["w"]))
    assert_masks(apply(*two, jnp.ones((40, SIZE)), dropout_key=KEY))


def test_each_step_of_a_loop_has_its_own_mask():
    ones = jnp.ones((40, SIZE))

    def scanned(p, x):
        return lax.scan(lambda c, w: (c, ones @ w), 0, p["w"])[1]

    def closed_over(p, x):
        return lax.scan(lambda c, _: (c, ones @ p["w"]), 0, length=3)[1]

    def carried(p, x):
        return lax.scan(lambda w, _: (w, ones @ w), p["w"], length=3)[1]

    def counted(p, x):
        def body(k, all_of_them):
            return all_of_them.at[k].set(x @ p["w"])

        return lax.fori_loop(0, 3, body, jnp.zeros((3, 40, SIZE)))

    assert_masks(masks(scanned, 3))
    for fn in (closed_over, carried, counted):
        assert_masks(masks(fn))


def test_a_loop_within_a_loop_has_a_mask_for_each_pair_of_steps():
    def fn(p, x):
        def outer(c, w):
            return c, lax.scan(lambda c, _: (c, x @ w), 0, length=2)[1]

        return lax.scan(outer, 0, p["w"])[1].reshape(6, 40, SIZE)

    assert_masks(masks(fn, 3))


def test_calls_of_one_jitted_layer_have_masks_of_their_own():
    layer = jax.jit(lambda w, x: x @ w)
    assert_masks(masks(lambda p, x: (layer(p["w"], x), layer(p["w"], x))))


def test_branches_and_rematerialised_layers():
    def branched(p, x):
        return lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: x @ w.T, p["w"])

    assert_masks([masks(branched), masks(jax.checkpoint(lambda p, x: x @ p["w"]))])


def test_convolutions_and_experts():
    def experts(p, x):
        return lax.ragged_dot(x, p["w"], jnp.array([11, 29]))

    assert_masks([masks(experts, 2)])
    window = jnp.zeros((3, 3, SIZE, SIZE)).at[1, 1].set(jnp.eye(SIZE))
    node = jlora.LoraWeight(
        window,
        jnp.eye(SIZE),
        jnp.float32(1),
        jlora.Axes((0, 1, 2), (3,)),
        dropout=jnp.float32(RATE),
    )
    apply = jlora.lift(
        strict=True,
        fn=lambda p, x: lax.conv_general_dilated(
            x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
    )
    frozen = {"w": jnp.zeros((3, 3, SIZE, SIZE))}
    out = apply(frozen, {"w": node}, jnp.ones((2, 5, 4, SIZE)), dropout_key=KEY)
    assert_masks([out])


def test_the_same_key_gives_the_same_mask_and_another_another():
    def fn(p, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, p["w"])[0]

    one, same, other = (masks(fn, 3, key=jax.random.key(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    # jit folds 1 - RATE into the division
    assert_close(one, masks(fn, 3, key=jax.random.key(1), jit=False), 1e-6)


def test_a_batch_of_keys_gives_a_batch_of_masks():
    keys = jax.random.split(KEY, 3)
    apply = jlora.lift(lambda p, x: x @ p["w"])
    frozen, lora = revealing()

    def one(key):
        return apply(frozen, lora, jnp.ones((40, SIZE)), dropout_key=key)

    assert_masks(jax.vmap(one)(keys))


def test_old_style_keys_do_too():
    assert_masks([masks(lambda p, x: x @ p["w"], key=jax.random.PRNGKey(0))])


def test_gradients_are_those_of_the_same_mask():
    """By finite differences along a random direction, through loops and rematerialisation."""
    params = {"w": jax.random.normal(KEY, (3, 7, 7)) / 3}
    frozen, lora = adapted(params, {"w": jlora.Axes((1,), (2,), (0,))}, dropout=0.5)
    x = jax.random.normal(KEY, (4, 7))

    def fn(p, x):
        step = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return lax.scan(step, x, p["w"])[0].sum()

    direction = jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size)).reshape(v.shape), lora)
    direction["w"] = dataclasses.replace(
        direction["w"], scaling=jnp.float32(0), dropout=jnp.float32(0)
    )
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: v.astype("float64"), (frozen, x, lora, direction))

        def along(t):
            frozen, x, *pair = wide
            lora = jax.tree.map(lambda v, d: v + t * d, *pair)
            return jlora.lift(fn, strict=True)(frozen, lora, x, dropout_key=KEY)

        step = 1e-5
        slope = (along(step) - along(-step)) / (2 * step)
        assert float(jax.grad(along)(0.0)) == pytest.approx(float(slope), rel=1e-6)


def test_each_device_of_a_shard_map_has_its_own_mask():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def fn(p, x):
        return jax.shard_map(
            lambda w, x: x @ w, mesh=mesh, in_specs=(jax.P(), jax.P("x")), out_specs=jax.P("x")
        )(p["w"], x)

    assert_masks([masks(fn)])


def test_lookups_and_merged_weights_have_none():
    frozen, lora = adapted({"table": jax.random.normal(KEY, (13, 7))}, dropout=0.5)
    for fn in (lambda p: p["table"][jnp.array([1, 5])], lambda p: jnp.tanh(p["table"])):
        apply = jax.jit(jlora.lift(fn))
        if fn(frozen).shape == (13, 7):
            with pytest.warns(jlora.MaterialisedWarning):
                got = apply(frozen, lora, dropout_key=KEY)
        else:
            got = apply(frozen, lora, dropout_key=KEY)
        assert_close(got, fn(jlora.merge(frozen, lora)))


def test_the_key_is_part_of_the_signature_and_reaches_a_function_that_asks_for_it():
    apply = jlora.lift(lambda params, x, *, scale=1.0: scale * x @ params["w"])
    assert list(inspect.signature(apply).parameters) == [
        "frozen", "lora", "x", "scale", "dropout_key",
    ]  # fmt: skip
    asks = jlora.lift(lambda params, x, dropout_key: (x @ params["w"], dropout_key))
    out, key = asks(*revealing(), jnp.ones((40, SIZE)), dropout_key=KEY)
    assert_masks([out])
    assert key == KEY


def test_a_rate_out_of_range_is_refused():
    with pytest.raises(ValueError, match="dropout is 1: expected a number from 0 to below 1"):
        jlora.LoraConfig(targets="w", dropout=1)


def test_leaves_that_are_stacked_keep_their_own_rates():
    frozen, one = revealing()
    _, other = revealing(rate=0.5)
    params = dict.fromkeys(("q", "k"), frozen["w"])
    lora = {"q": one["w"], "k": other["w"]}

    def fn(p, x):
        return jnp.einsum("bi,eio->ebo", x, jnp.stack([p["q"], p["k"]]))

    x = jnp.ones((400, SIZE))
    out = jlora.lift(fn, strict=True)(params, lora, x, dropout_key=KEY)
    assert_masks(out[:1], RATE)
    assert_masks(out[1:], 0.5)
    experts = jlora.lift(
        lambda p, x: jnp.einsum("ebi,eio->ebo", jnp.stack([x, x]), jnp.stack([p["q"], p["k"]]))
    )(params, lora, x, dropout_key=KEY)
    assert_masks(experts[:1], RATE)
    assert_masks(experts[1:], 0.5)


def test_weights_that_a_loop_returns_keep_their_dropout():
    """They are stacked again, and one use of the stack is one mask."""

    def fn(p, x):
        _, doubled = lax.scan(lambda carry, w: (carry, 2 * w), 0, p["w"])
        return jnp.einsum("bi,eio->ebo", x, doubled)

    out = masks(fn, 3)
    assert_masks([out[0] / 2])
    assert np.array_equal(out[0], out[2])  # x is one, and is dropped once
    again = masks(lambda p, x: [fn(p, x), fn(p, x)], 3)
    assert_masks([again[0][0] / 2, again[1][0] / 2])
