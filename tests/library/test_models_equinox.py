"""Equinox: the module is the tree of parameters, with activations and sizes among its leaves."""

import equinox as eqx
import jax
import jax.numpy as jnp
from laws import adapted, check_law_1, check_learns

import jlora

KEY = jax.random.key(0)


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    layers: list
    name: str = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.embed = eqx.nn.Embedding(13, 6, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(3, 6, key=keys[1])
        self.mlp = eqx.nn.MLP(6, 6, 11, depth=2, key=keys[2])
        self.layers = [eqx.nn.LayerNorm(6), jax.nn.tanh, eqx.nn.Linear(6, 13, key=keys[3])]
        self.name = "small"

    def __call__(self, ids):
        x = jax.vmap(self.embed)(ids)
        x = x + self.attention(x, x, x)
        x = x + jax.vmap(self.mlp)(x)
        for layer in self.layers:
            x = jax.vmap(layer)(x)
        return x


def apply(model, ids):
    return jax.vmap(model)(ids)


IDS = jax.random.randint(jax.random.key(1), (3, 5), 0, 13)


def test_a_module_partitioned_into_arrays_stays_factored_and_right():
    arrays, static = eqx.partition(Transformer(KEY), eqx.is_array)
    fn = lambda arrays, ids: apply(eqx.combine(arrays, static), ids)  # noqa: E731
    axes = jlora.trace_axes(fn, arrays, IDS)
    assert axes.unclear == {}
    assert axes["embed/weight"] == jlora.Axes(inputs=(0,), outputs=(1,))
    assert axes["layers/2/weight"] == jlora.Axes(inputs=(1,), outputs=(0,))
    frozen, lora = adapted(arrays, axes, targets="weight", rank=2)
    assert len(lora) == 1 + 4 + 3 + 1
    assert lora["layers/2/weight"].a.shape == (6, 2)
    assert lora["layers/2/weight"].b.shape == (2, 13)
    check_law_1(fn, frozen, lora, IDS, tolerance=1e-4)


def test_a_whole_module_is_a_tree_of_parameters_with_its_functions_in_it():
    model = Transformer(KEY)
    axes = jlora.trace_axes(apply, model, IDS)
    frozen, lora = jlora.split(
        model, jlora.LoraConfig(targets="weight", rank=2, exclude="embed"), KEY, axes=axes
    )
    assert frozen.embed.weight is model.embed.weight
    merged = jlora.merge(frozen, lora)
    assert isinstance(merged, Transformer)
    assert merged.layers[1] is jax.nn.tanh
    assert merged.name == "small"
    lifted = jlora.lift(apply, strict=True)
    assert jnp.array_equal(lifted(frozen, lora, IDS), apply(model, IDS))

    def loss(model, ids):
        logits = jax.nn.log_softmax(apply(model, ids))
        return -jnp.take_along_axis(logits, ids[..., None], -1).mean()

    arrays, static = eqx.partition(model, eqx.is_array)
    check_learns(lambda p, ids: loss(eqx.combine(p, static), ids), arrays, lora, IDS)
