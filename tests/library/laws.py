"""What every test of `lift` shares: an adapter that has trained, and the check of law 1."""

import contextlib
import dataclasses
import functools
import importlib.util
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import _registry
from jlora._lift import _walk

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@functools.cache
def example(name):
    """An example as a module, whose methods it registers."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def adapted(params, axes=None, *, targets=".", rank=3, alpha=5.0, seed=0, **options):
    """`split`, and an adapter that has trained for a while: no factor is zero."""
    config = jlora.LoraConfig(targets=targets, rank=rank, alpha=alpha, **options)
    frozen, lora = jlora.split(params, config, jax.random.key(seed), axes=axes)
    return frozen, trained(lora, seed + 1)


def trained(lora, seed=1):
    """The adapter with noise on all that trains but A, which is noise already."""
    keys = jax.random.split(jax.random.key(seed), len(lora))

    def moved(node, key):
        arrays = {name: getattr(node, name) for name in node.trainable if name != "a"}
        noise = {name: 0.3 * jax.random.normal(key, v.shape) for name, v in arrays.items()}
        return dataclasses.replace(
            node, **{name: (v + noise[name]).astype(v.dtype) for name, v in arrays.items()}
        )

    return {path: moved(lora[path], key) for path, key in zip(lora, keys, strict=True)}


def assert_close(got, want, tolerance=2e-5):
    """Two trees are alike, each leaf's differences measured against its largest value."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    named = jax.tree_util.tree_leaves_with_path(got)
    for (path, one), other in zip(named, jax.tree.leaves(want), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), path
        one, other = (np.asarray(value, "float64") for value in (one, other))
        size = max(np.abs(np.nan_to_num(other)).max(initial=0), 1e-3)
        np.testing.assert_allclose(
            one / size, other / size, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )


def check_law_1(fn, frozen, lora, *args, merged=0, factored=None, tolerance=2e-5):
    """The lifted function is that of the merged tree, in values and gradients.

    ``explain`` tells of so many uses, factored and merged; with ``merged=0`` the lifted function is
    strict. Returns the report.
    """
    lifted = jlora.lift(fn, strict=merged == 0)

    @jax.jit
    def both(frozen, lora, args):
        want, pull = jax.vjp(lambda lora: fn(jlora.merge(frozen, lora), *args), lora)
        weights = jax.tree.map(_cotangent, want)
        got, pull_lifted = jax.vjp(lambda lora: lifted(frozen, lora, *args), lora)
        return (want, pull(weights)[0]), (got, pull_lifted(weights)[0])

    told = pytest.warns(jlora.MaterialisedWarning) if merged else contextlib.nullcontext()
    with told:
        want, got = both(frozen, lora, args)
    assert_close(got, want, tolerance)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(want[1])), "no gradient to test"
    report = jlora.explain(fn, frozen, lora, *args)
    assert report.materialised == merged, f"\n{report}"
    assert factored is None or report.factored == factored, f"\n{report}"
    return report


def _cotangent(value):
    """One that tells every entry of a result from the others."""
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return np.zeros(value.shape, jax.dtypes.float0)
    return jnp.cos(jnp.arange(value.size)).reshape(value.shape).astype(value.dtype)


def check_learns(loss, frozen, lora, *args, steps=8, rate=3e-2):
    """A few steps through the lifted function alone make the loss fall."""
    tx = jlora.optimizer(optax.adam(rate))
    lifted = jlora.lift(loss, strict=True)

    @jax.jit
    def step(lora, state):
        value, grads = jax.value_and_grad(lifted, argnums=1)(frozen, lora, *args)
        updates, state = tx.update(grads, state, lora)
        return optax.apply_updates(lora, updates), state, value

    state, losses = tx.init(lora), []
    for _ in range(steps):
        lora, state, value = step(lora, state)
        losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0], losses


def check_costs(lifted, by_hand, merged, frozen, lora, x, at_least=0.995):
    """Law 4: a lifted step's FLOPs and temporary bytes are those by hand; W + A B costs more.

    ``at_least`` is lower where by hand an activation is computed a second time, transposed.
    """

    def cost(apply):
        def loss(lora, frozen, x):
            return (apply(frozen, lora, x) ** 2).mean()

        compiled = jax.jit(jax.value_and_grad(loss)).lower(lora, frozen, x).compile()
        value = float(compiled(lora, frozen, x)[0])
        memory = compiled.memory_analysis().temp_size_in_bytes
        return value, compiled.cost_analysis()["flops"], memory

    value, flops, memory = cost(lifted)
    same, by_hand_flops, by_hand_memory = cost(by_hand)
    _, merged_flops, _ = cost(merged)
    assert value == pytest.approx(same, rel=1e-4)
    assert at_least * by_hand_flops <= flops <= 1.005 * by_hand_flops
    assert memory <= 1.02 * by_hand_memory
    assert flops < 0.97 * merged_flops


@pytest.fixture
def nothing_registered_stays():
    """What an example registers is gone after it."""
    with mock.patch.dict(_registry.NODES), mock.patch.dict(_walk.RULES):
        yield
