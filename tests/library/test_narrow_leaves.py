"""Leaves narrower than the rank: all-linear takes them, a name that means them is a mistake."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora

PARAMS = {
    "up": jax.random.normal(jax.random.key(0), (7, 11)),
    "gate": jax.random.normal(jax.random.key(1), (7, 1)),
    "down": jax.random.normal(jax.random.key(2), (11, 7)),
    "head": jax.random.normal(jax.random.key(3), (7, 13)),
}
X = jax.random.normal(jax.random.key(4), (5, 7))


def fn(p, x):
    return (x + jax.nn.gelu(x @ p["up"]) @ p["down"] * jax.nn.sigmoid(x @ p["gate"])) @ p["head"]


AXES = jlora.trace_axes(fn, PARAMS, X)


def test_all_linear_takes_a_gate_of_one_output_at_the_rank_of_the_others():
    config = jlora.LoraConfig(targets="all-linear", rank=3, alpha=5)
    frozen, lora = jlora.split(PARAMS, config, jax.random.key(0), axes=AXES)
    assert {path: node.b.shape for path, node in lora.items()} == {
        "up": (3, 11),
        "gate": (3, 1),
        "down": (3, 7),
    }
    lora = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim else leaf, lora)
    merged = fn(jlora.merge(frozen, lora), X)
    np.testing.assert_allclose(jlora.lift(fn)(frozen, lora, X), merged, rtol=1e-4, atol=1e-4)
    grads = jax.grad(lambda lora: jlora.lift(fn)(frozen, lora, X).sum())(lora)
    assert jnp.any(grads["gate"].b) and jnp.any(grads["gate"].a)  # noqa: PT018


@pytest.mark.parametrize(
    "options", [{"targets": "gate"}, {"targets": "all-linear", "init": "pissa"}]
)
def test_a_name_that_means_it_and_a_start_that_takes_weight_are_refused(options):
    config = jlora.LoraConfig(rank=3, **options)
    with pytest.raises(ValueError, match="gate is a matrix of 7 x 1: rank 3 is larger than it"):
        jlora.split(PARAMS, config, jax.random.key(0), axes=AXES)


def test_errors_about_hundreds_of_leaves_stay_short():
    many = {f"layer {at}": jnp.ones((7, 5)) for at in range(300)}
    with pytest.raises(ValueError, match="and 282 more") as caught:
        jlora.split(many, jlora.LoraConfig(targets="layer", rank=6), jax.random.key(0))
    assert len(str(caught.value).splitlines()) == 20
    config = jlora.LoraConfig(targets="layer", rank=2)
    _, lora = jlora.split(many, config, jax.random.key(0))
    with pytest.raises(ValueError, match="and 282 more") as caught:
        jlora.merge(PARAMS, lora)
    assert len(str(caught.value).splitlines()) == 20
