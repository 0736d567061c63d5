"""Haiku: transformed functions, whose parameters have slashes in their names."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from laws import adapted, check_law_1, check_learns

import jlora

IDS = jax.random.randint(jax.random.key(1), (3, 5), 0, 13)


def transformer(ids):
    embed = hk.Embed(13, 6)
    x = embed(ids)
    for _ in range(2):
        attention = hk.MultiHeadAttention(3, 2, w_init=hk.initializers.VarianceScaling(1.0))
        normed = hk.LayerNorm(-1, True, True)(x)
        x = x + attention(normed, normed, normed)
        x = x + hk.nets.MLP([11, 6])(hk.LayerNorm(-1, True, True)(x))
    return x @ embed.embeddings.T


def test_a_transformer_stays_factored_and_right_and_learns():
    model = hk.without_apply_rng(hk.transform(transformer))
    params = jax.jit(model.init)(jax.random.key(0), IDS)
    axes = jlora.trace_axes(model.apply, params, IDS)
    assert axes.unclear == {}
    frozen, lora = adapted(params, axes, targets=("/w$", "embeddings"), rank=2)
    assert len(lora) == 2 * (4 + 2) + 1
    assert "multi_head_attention/query/w" in lora
    report = check_law_1(model.apply, frozen, lora, IDS, tolerance=1e-4)
    products = [use.path for use in report.uses if use.operation == "dot_general"]
    assert sorted(products) == sorted(lora)

    def loss(params, ids):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, ids), ids).mean()

    fresh = jlora.split(
        params, jlora.LoraConfig(targets="/w$", rank=2), jax.random.key(2), axes=axes
    )
    check_learns(loss, *fresh, IDS)


def test_state_and_random_keys_pass_through():
    def net(x):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(11)(x), is_training=True)
        return hk.Linear(5)(hk.dropout(hk.next_rng_key(), 0.5, x))

    model = hk.transform_with_state(net)
    x = jax.random.normal(jax.random.key(1), (13, 7))
    params, state = model.init(jax.random.key(0), x)
    frozen, lora = adapted(params, targets="linear.*/w")
    key = jax.random.key(3)
    check_law_1(model.apply, frozen, lora, state, key, x, factored=2)
    assert jnp.ndim(frozen["linear"]["w"]) == 2
