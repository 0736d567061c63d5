"""Dropout rates are data: they stack, and one program serves them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_kind import IDS, KEY, PARAMS, every_kind, lifted_loss
from laws import assert_close

import jlora

SIZE = 40
ONES = jnp.ones((100, SIZE))


def revealing(rate):
    """(frozen, lora) whose adapter gives back what it gets: W = 0, A = B = 1."""
    frozen = {"w": jnp.zeros((SIZE, SIZE))}
    config = jlora.LoraConfig(targets="w", rank=SIZE, alpha=SIZE, dropout=rate)
    _, lora = jlora.split(frozen, config, KEY)
    eye = jnp.eye(SIZE)
    return frozen, {"w": dataclasses.replace(lora["w"], a=eye, b=eye)}


def assert_drops(out, rate):
    kept = np.asarray(out) != 0
    np.testing.assert_allclose(np.asarray(out)[kept], 1 / (1 - rate), rtol=1e-5)
    assert abs(kept.mean() - (1 - rate)) < 0.05


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_rate_is_an_array_and_none_where_nothing_drops(method):
    def node(dropout):
        config = jlora.LoraConfig(targets="up", rank=2, method=method, dropout=dropout)
        return jlora.split(PARAMS, config, KEY)[1]["up/kernel"]

    assert node(0.0).dropout is None
    assert isinstance(node(0.25).dropout, jax.Array)
    assert (float(node(0.25).dropout), node(0.25).dropout.shape) == (0.25, ())
    assert len(jax.tree.leaves(node(0.25))) == 1 + len(jax.tree.leaves(node(0.0)))


def test_adapters_of_different_rates_stack_and_drop_at_their_own():
    rates = (0.25, 0.75)
    (frozen, one), (_, other) = map(revealing, rates)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
    apply = jlora.lift(lambda p, x: x @ p["w"], strict=True)

    @jax.vmap
    def run(lora, key):
        return apply(frozen, lora, ONES, dropout_key=key)

    keys = jax.random.split(KEY, 2)
    outputs = run(both, keys)
    for out, alone, key, rate in zip(outputs, (one, other), keys, rates, strict=True):
        assert_drops(out, rate)
        assert_close(out, apply(frozen, alone, ONES, dropout_key=key))
    assert_close(jax.vmap(lambda lora: apply(frozen, lora, ONES))(both), jnp.stack([ONES] * 2))


def test_one_compiled_program_serves_two_rates():
    traces = []

    def counted(p, x):
        traces.append(None)
        return x @ p["w"]

    apply = jax.jit(jlora.lift(counted, strict=True))
    for rate in (0.25, 0.5):
        assert_drops(apply(*revealing(rate), ONES, dropout_key=KEY), rate)
    assert len(traces) == 1


def test_a_rate_does_not_train():
    lora = every_kind(dropout=0.5)
    tx = jlora.optimizer(optax.adamw(0.1, weight_decay=0.1))
    state = tx.init(lora)
    held = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    of_those_that_train = jax.tree.map(
        lambda leaf, trains: leaf.size if trains else 0, lora, jlora.mask(lora)
    )
    assert held == 2 * sum(jax.tree.leaves(of_those_that_train))
    assert jlora.mask(lora)["up/kernel"].dropout is False
    assert jlora.labels(lora)["up/kernel"].dropout == "freeze"
    assert jlora.decay_mask(lora)["up/kernel"].dropout is False

    @jax.jit
    def step(lora, state):
        def of(lora):
            return lifted_loss(PARAMS, lora, IDS, dropout_key=KEY)

        grads = jax.grad(of)(lora)
        updates, _ = tx.update(grads, state, lora)
        return grads, optax.apply_updates(lora, updates)

    grads, moved = step(lora, state)
    assert grads["up/kernel"].dropout == 0
    assert np.abs(grads["up/kernel"].b).max() > 0
    assert moved["up/kernel"].dropout == lora["up/kernel"].dropout
    assert not np.array_equal(moved["up/kernel"].a, lora["up/kernel"].a)
