"""Adapters of one base as one: what is merged is the weighted sum of what each merges."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora

PARAMS = {
    "embed": jax.random.normal(jax.random.key(1), (11, 7)),
    "layers": {  # a stack of three
        "kernel": jax.random.normal(jax.random.key(2), (3, 7, 5)),
        "bias": jax.random.normal(jax.random.key(3), (3, 5)),
    },
    "norm": jnp.ones(7),
}
AXES = {"layers/kernel": jlora.Axes(inputs=(1,), outputs=(2,), stack=(0,))}


def adapter(seed, **options):
    """An adapter with noise in every trained field."""
    config = jlora.LoraConfig(**{"targets": "kernel", "alpha": 5, **options})
    _, lora = jlora.split(PARAMS, config, jax.random.key(seed), axes=AXES)

    def noisy(path, node):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), len(path)), 3)
        return dataclasses.replace(
            node,
            **{
                name: field + jax.random.normal(key, field.shape, field.dtype)
                for name, key in zip(node.trainable, keys, strict=False)
                for field in [getattr(node, name)]
            },
        )

    return {path: noisy(path, node) for path, node in lora.items()}


def change(lora):
    """What merging adds, by leaf."""
    return jax.tree.map(lambda new, old: np.asarray(new - old), jlora.merge(PARAMS, lora), PARAMS)


def assert_sum(combined, adapters, weights):
    wanted = jax.tree.map(
        lambda *parts: sum(w * part for w, part in zip(weights, parts, strict=True)),
        *map(change, adapters),
    )
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=3e-5),
        change(combined),
        wanted,
    )


def test_cat_is_the_weighted_sum_of_what_each_adds():
    adapters = [
        adapter(1, rank=2),
        adapter(2, rank=3, rslora=True, layers=(0, 2)),
        adapter(3, rank=2, targets="kernel|embed"),
        adapter(5, rank=2, bias="lora"),
        adapter(6, rank=1, bias="lora", alpha=2),
        adapter(4, rank=4, rank_pattern={"kernel": (1, 4, 2)}),
    ]
    weights = [0.5, -1.5, 1.0, 0.8, -0.4, 2.0]
    combined = jlora.combine(adapters, weights)
    assert combined["layers/kernel"].rank == 2 + 3 + 2 + 2 + 1 + 4
    assert combined["embed"].rank == 2
    assert {float(node.scaling) for node in combined.values()} == {1.0}
    assert_sum(combined, adapters, weights)


def test_linear_multiplies_the_sum_of_a_by_the_sum_of_b():
    one, other = adapter(1, rank=3), adapter(2, rank=3, alpha=9, layers=(1, 2))
    combined = jlora.combine([one, other], [0.3, -0.7], method="linear")["layers/kernel"]
    assert combined.rank == 3
    a = b = 0
    for node, weight in ((one["layers/kernel"], 0.3), (other["layers/kernel"], -0.7)):
        scaling = np.broadcast_to(np.asarray(node.scaling), (3, 3)) * weight
        root = np.sqrt(np.abs(scaling))
        a = a + np.asarray(node.a) * (np.sign(scaling) * root)[:, None, :]
        b = b + np.asarray(node.b) * root[:, :, None]
    np.testing.assert_allclose(combined.a, a, rtol=1e-5)
    np.testing.assert_allclose(combined.b, b, rtol=1e-5)


@pytest.mark.parametrize("method", ["cat", "linear"])
def test_factors_keep_their_dtype(method):
    adapters = [adapter(seed, rank=2, dtype="bfloat16") for seed in (1, 2)]
    node = jlora.combine(adapters, [0.5, 2.0], method=method)["layers/kernel"]
    assert (node.a.dtype, node.b.dtype, node.scaling.dtype) == ("bfloat16", "bfloat16", "float32")


@pytest.mark.parametrize("method", ["cat", "linear"])
def test_one_adapter_is_itself_times_its_weight(method):
    one = adapter(1, rank=3)
    combined = jlora.combine([one], [-0.25], method=method)
    assert combined["layers/kernel"].rank == 3
    assert_sum(combined, [one], [-0.25])


def test_rows_of_tokens_and_what_one_adapter_alone_trains_come_along():
    tokens = [
        adapter(1, rank=2, tokens={"embed": (5, 3)}),
        adapter(2, rank=2, tokens={"embed": (3, 8)}, train="norm"),
    ]
    combined = jlora.combine(tokens, [0.5, 1.0])
    assert combined["embed"].tokens == (5, 3, 8)
    assert_sum(combined, tokens, [0.5, 1.0])


def test_it_runs_under_jit_and_vmap_with_weights_that_are_arrays():
    adapters = [adapter(1, rank=2), adapter(2, rank=3)]
    weights = jnp.array([[0.5, 2.0], [1.0, -1.0]])
    many = jax.jit(jax.vmap(lambda w: jlora.combine(adapters, list(w))))(weights)
    for at in range(2):
        one = jax.tree.map(lambda leaf, at=at: leaf[at], many)
        assert_sum(one, adapters, weights[at].tolist())


def test_everything_that_has_no_sum_is_named_at_once():
    plain = adapter(1, rank=2, targets="kernel|embed", train="norm")
    other = adapter(2, rank=3, targets="embed", method="dora", train="norm")
    other["layers/kernel"] = jlora.combine([adapter(3, rank=5)], [1.0])["layers/kernel"]
    with pytest.raises(ValueError, match="can't be combined") as caught:
        jlora.combine([plain, other], [1.0, 0.5], method="linear")
    told = str(caught.value)
    assert "embed: of the methods 'lora' and 'dora'" in told
    assert "layers/kernel: linear adds A to A and B to B: expected one rank, got [2, 5]" in told
    assert "norm: 'whole' is no sum: expected it in one adapter alone, of weight 1" in told
    with pytest.raises(ValueError, match="embed: 'dora' is no sum"):
        jlora.combine([other], [0.5])
    assert jlora.combine([other], [1])["embed"] is other["embed"]


def test_what_fits_no_adapter_is_said():
    one = adapter(1, rank=2)
    with pytest.raises(ValueError, match="method is 'svd': expected one of cat, linear"):
        jlora.combine([one], [1.0], method="svd")
    with pytest.raises(ValueError, match="1 adapters and 2 weights"):
        jlora.combine([one], [1.0, 2.0])
    node = one["layers/kernel"]
    narrow = {"layers/kernel": dataclasses.replace(node, b=node.b[..., :4])}
    with pytest.raises(ValueError, match=r"shapes \(3, 7, 5\) and \(3, 7, 4\): not of one base"):
        jlora.combine([one, narrow], [1.0, 1.0])
