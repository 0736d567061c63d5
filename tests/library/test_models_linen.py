"""Flax linen's own layers: factored through and through, equal to merged, and trainable."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from laws import adapted, assert_close, check_law_1, check_learns

import jlora

IDS = jax.random.randint(jax.random.key(1), (3, 5), 0, 13)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(3)(nn.LayerNorm()(x))
        hidden = nn.gelu(nn.Dense(11)(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(hidden), None


class Transformer(nn.Module):
    """Tied embeddings; layers scanned, rematerialised; a head over two dimensions."""

    scanned: bool

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(13, 6)
        x = embed(ids)
        if self.scanned:
            block = nn.remat(Block, prevent_cse=False)
            stack = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
            )
            x, _ = stack()(x, None)
        else:
            for _ in range(2):
                x, _ = Block()(x, None)
        pooled = nn.DenseGeneral((2, 4), axis=(-2, -1))(x)
        return embed.attend(nn.LayerNorm()(x)), pooled


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_a_transformer_stays_factored_and_right_and_learns(scanned):
    model = Transformer(scanned)
    params = jax.jit(model.init)(jax.random.key(0), IDS)
    axes = jlora.trace_axes(model.apply, params, IDS)
    assert axes.unclear == {}
    frozen, lora = adapted(params, axes, targets="kernel|embedding", rank=2)
    layers = 1 if scanned else 2
    assert len(lora) == 6 * layers + 2
    # q, k, v, out, two of the MLP; the head; the table for lookup and logits
    check_law_1(model.apply, frozen, lora, IDS, factored=6 * layers + 3, tolerance=1e-4)

    def loss(params, ids):
        logits, pooled = model.apply(params, ids)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean()
        return entropy + (pooled**2).mean()

    fresh = jlora.split(
        params, jlora.LoraConfig(targets="kernel", rank=2), jax.random.key(2), axes=axes
    )
    check_learns(loss, *fresh, IDS)


def test_mutable_statistics_come_back_as_from_the_merged_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(11)(x))
            return nn.Dense(5)(nn.relu(x))

    x = jax.random.normal(jax.random.key(1), (13, 7))
    variables = jax.jit(lambda key: Net().init(key, x, train=False))(jax.random.key(0))

    def apply(params, stats, x):
        return Net().apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )

    stats = variables["batch_stats"]
    axes = jlora.trace_axes(apply, variables["params"], stats, x)
    frozen, lora = adapted(variables["params"], axes, targets="kernel")
    check_law_1(apply, frozen, lora, stats, x, factored=2)


def test_dropout_drops_what_it_dropped():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(11)(x))
            return nn.Dense(5)(x)

    x = jax.random.normal(jax.random.key(1), (13, 7))
    params = jax.jit(lambda key: Net().init(key, x, train=False))(jax.random.key(0))
    frozen, lora = adapted(params, targets="kernel")
    lifted = jlora.lift(Net().apply, strict=True)
    merged = jlora.merge(frozen, lora)

    @jax.jit
    def both(seed):
        options = {"train": True, "rngs": {"dropout": jax.random.key(seed)}}
        return lifted(frozen, lora, x, **options), Net().apply(merged, x, **options)

    one, other = both(2), both(3)
    assert_close(*one)
    assert_close(*other)
    assert np.abs(one[0] - other[0]).max() > 0.1


def test_half_precision_compute_over_float32_parameters():
    model = nn.Sequential([nn.Dense(11, dtype="bfloat16"), nn.tanh, nn.Dense(5, dtype="bfloat16")])
    x = jax.random.normal(jax.random.key(1), (13, 7))
    params = jax.jit(model.init)(jax.random.key(0), x)
    frozen, lora = adapted(params, targets="kernel")
    check_law_1(model.apply, frozen, lora, x, factored=2, tolerance=3e-2)
    fresh = jlora.split(params, jlora.LoraConfig(targets="kernel", rank=2), jax.random.key(2))
    assert np.array_equal(jlora.lift(model.apply, strict=True)(*fresh, x), model.apply(params, x))


def test_convolutions_and_recurrences():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Conv(9, (3,))(x))
            x = nn.RNN(nn.OptimizedLSTMCell(5))(x)
            return nn.RNN(nn.GRUCell(5))(x)

    x = jax.random.normal(jax.random.key(1), (2, 6, 7))
    params = jax.jit(Net().init)(jax.random.key(0), x)
    axes = jlora.trace_axes(Net().apply, params, x)
    frozen, lora = adapted(params, axes, targets="kernel", rank=2)
    assert len(lora) == 1 + 8 + 6
    check_law_1(Net().apply, frozen, lora, x)
