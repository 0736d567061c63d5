"""Flax NNX: the state of a module is the tree of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from laws import adapted, check_law_1, check_learns

import jlora

IDS = jax.random.randint(jax.random.key(1), (3, 5), 0, 13)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(3, 6, decode=False, rngs=rngs)
        self.up = nnx.Linear(6, 11, rngs=rngs)
        self.down = nnx.Linear(11, 6, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.silu(self.up(x)))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(13, 6, rngs=rngs)
        self.blocks = nnx.vmap(Block)(rngs.split(2))
        self.last = Block(rngs)

    def __call__(self, ids):
        step = lambda x, block: block(x)  # noqa: E731
        run = nnx.scan(nnx.remat(step), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.embed.attend(self.last(run(self.embed(ids), self.blocks)))


@nnx.jit
def transformer():
    return Transformer(nnx.Rngs(0))


def parts():
    graph, params, rest = nnx.split(transformer(), nnx.Param, ...)
    return params, lambda params, ids: nnx.merge(graph, params, rest)(ids)


def test_a_transformer_stays_factored_and_right_and_learns():
    params, apply = parts()
    axes = jlora.trace_axes(apply, params, IDS)
    assert axes.unclear == {}
    frozen, lora = adapted(params, axes, targets="kernel|embedding", rank=2)
    assert len(lora) == 13
    check_law_1(apply, frozen, lora, IDS, factored=14, tolerance=1e-4)

    def loss(params, ids):
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, ids), ids).mean()

    fresh = jlora.split(
        params, jlora.LoraConfig(targets="kernel", rank=2), jax.random.key(2), axes=axes
    )
    check_learns(loss, *fresh, IDS)


def test_merged_parameters_go_back_into_the_module():
    params, apply = parts()
    frozen, lora = adapted(params, jlora.trace_axes(apply, params, IDS), targets="up|down", rank=2)
    model = transformer()
    nnx.update(model, jlora.merge(frozen, lora))
    lifted = jax.jit(jlora.lift(apply, strict=True))
    got = nnx.jit(lambda model: model(IDS))(model)
    np.testing.assert_allclose(got, lifted(frozen, lora, IDS), rtol=2e-5, atol=2e-5)


def test_a_pure_dict_of_the_state_serves_as_well():
    graph, state = nnx.split(nnx.Linear(7, 11, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)

    def apply(params, x):
        filled = nnx.clone(state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled)(x)

    frozen, lora = adapted(params, targets="kernel")
    assert list(lora) == ["kernel"]
    check_law_1(apply, frozen, lora, jnp.ones((5, 7)), factored=1)


def test_a_module_that_takes_the_merged_weights_leaves_the_frozen_ones_alone():
    net = nnx.Linear(7, 5, rngs=nnx.Rngs(0))
    graph, params = nnx.split(net)
    x = jax.random.normal(jax.random.key(2), (3, 7))
    config = jlora.LoraConfig(targets="kernel", rank=2)
    frozen, lora = jlora.split(params, config, jax.random.key(1))
    lora = jax.tree.map(lambda leaf: leaf + 0.1, lora)
    apply = jlora.lift(lambda params, x: nnx.merge(graph, params)(x))
    before = apply(frozen, lora, x)
    nnx.update(net, jlora.merge(frozen, lora))
    np.testing.assert_array_equal(apply(frozen, lora, x), before)
    np.testing.assert_allclose(net(x), before, rtol=1e-5, atol=1e-5)
