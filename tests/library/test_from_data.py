"""EVA and LoRA-GA against the decompositions that they find without forming the matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from laws import assert_close, trained

import jlora

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def tree():
    return {"first": normal(12, 9, seed=1), "layers": normal(3, 9, 3, 3, seed=2) / 3}


def run(params, x, seen=None):
    """Two kinds of layers; ``seen`` collects what each weight multiplies (unrolled)."""
    x = jnp.tanh(x @ params["first"])

    def step(x, w):
        return x + jnp.tanh(jnp.einsum("bi,iho->bho", x, w).reshape(-1, 9)), None

    return lax.scan(jax.checkpoint(step), x, params["layers"])[0]


def activations(params, x):
    seen = {"first": [x], "layers": []}
    x = jnp.tanh(x @ params["first"])
    for w in params["layers"]:
        seen["layers"].append(x)
        x = x + jnp.tanh(x @ w.reshape(9, 9))
    return {path: np.stack([np.asarray(v) for v in each]) for path, each in seen.items()}


BATCHES = [normal(20, 12, seed=seed) * jnp.linspace(3, 0.1, 12) ** 2 for seed in (5, 6, 7)]


def adapter(*, targets="first|layers", rank=2, **options):
    config = jlora.LoraConfig(targets=targets, rank=rank, alpha=6, **options)
    axes = jlora.trace_axes(run, tree(), BATCHES[0])
    return config, axes, *jlora.split(tree(), config, KEY, axes=axes)


def singular(path):
    """The right singular vectors of all activations, and each one's share of the squares."""
    each = [activations(tree(), batch)[path] for batch in BATCHES]
    _, s, vt = np.linalg.svd(np.concatenate(each, axis=1))
    return s**2 / (s**2).sum(-1, keepdims=True), vt


def test_eva_starts_a_at_the_singular_vectors_of_the_activations():
    config, _, frozen, lora = adapter()
    _, eva, same = jlora.eva(run, frozen, lora, BATCHES, config, KEY, rho=1, iterations=8)
    assert {path: node.rank for path, node in eva.items()} == {"first": 2, "layers": 2}
    for path, node in eva.items():
        _, vt = singular(path)
        a = np.asarray(node.a).reshape(-1, *node.a.shape[-2:])
        for got, want in zip(a, vt[:, :2], strict=True):
            signs = np.sign((got * want.T).sum(0))
            np.testing.assert_allclose(got * signs, want.T, atol=2e-3)
        assert not np.asarray(node.b).any()
        assert float(node.scaling) == 3
    assert_close(run(jlora.merge(frozen, eva), BATCHES[0]), run(tree(), BATCHES[0]))
    assert (same.ranks_for("first"), same.scaling_for("first", 2)) == (2, 3)


def test_eva_gives_ranks_to_where_they_explain_most():
    config, axes, frozen, lora = adapter()
    _, eva, told = jlora.eva(run, frozen, lora, BATCHES, config, KEY, rho=2, iterations=8)
    shares = {path: singular(path)[0][:, :4] for path in lora}
    every = np.sort(np.concatenate([each.ravel() for each in shares.values()]))[::-1]
    wanted = {path: (each >= every[7]).sum(1) for path, each in shares.items()}
    assert sum(int(each.sum()) for each in wanted.values()) == 8  # four matrices of rank 2
    moved = {path: jnp.atleast_3d(node.delta()) for path, node in trained(eva).items()}
    for path, node in eva.items():
        ranks = wanted[path]
        assert node.rank == ranks.max()
        of_layers = moved[path].reshape(len(ranks), -1, 9)
        assert [np.linalg.matrix_rank(each) for each in of_layers] == list(ranks)
        assert set(np.unique(node.scaling)) <= {0.0, 3.0}
    # the configuration says what came out: splitting with it gives the same shapes and scalings
    _, again = jlora.split(tree(), told, KEY, axes=axes)
    for path, node in again.items():
        assert node.a.shape == eva[path].a.shape
        np.testing.assert_allclose(node.scaling, eva[path].scaling, rtol=1e-6)


def test_eva_takes_the_rank_from_leaves_that_explain_little_and_drops_them_at_none():
    params = {"sharp": jnp.eye(8), "flat": jnp.eye(8)}

    def fn(p, batch):
        return batch[0] @ p["sharp"], batch[1] @ p["flat"]

    batches = [(normal(40, 1) * jnp.eye(8)[0] + normal(40, 1, seed=1) * jnp.eye(8)[1],
                normal(40, 8))]  # fmt: skip
    config = jlora.LoraConfig(targets="sharp|flat", rank=1, alpha=2)
    frozen, lora = jlora.split(params, config, KEY)
    _, eva, told = jlora.eva(fn, frozen, lora, batches, config, KEY)
    assert {path: node.rank for path, node in eva.items()} == {"sharp": 2}
    assert list(jlora.split(params, told, KEY)[1]) == ["sharp"]


@pytest.mark.parametrize(
    "patterns",
    [
        {"rank_pattern": {"^first$": 3}, "alpha_pattern": {"^first$": 12.0}},
        {"rank_pattern": {"first|layers": 3}, "alpha_pattern": {"^layers$": (2.0, 4.0, 6.0)}},
        {"rank_pattern": {"layers": (1, 2, 3)}, "rslora": True},
    ],
)
def test_eva_tells_the_ranks_of_a_configuration_that_had_patterns(patterns):
    config, axes, frozen, lora = adapter(**patterns)
    for _ in range(2):  # what it told is a configuration like any other
        frozen, lora, config = jlora.eva(run, frozen, lora, BATCHES, config, KEY)
        _, again = jlora.split(tree(), config, KEY, axes=axes)
        for path, node in again.items():
            assert node.a.shape == lora[path].a.shape
            np.testing.assert_allclose(*np.broadcast_arrays(node.scaling, lora[path].scaling), 1e-6)


def test_eva_drops_the_patterns_of_a_leaf_that_it_drops():
    params = {"sharp": jnp.eye(8), "flat": 1e-3 * jnp.eye(8)}

    def fn(p, batch):
        return batch[0] @ p["sharp"], batch[1] @ p["flat"]

    batches = [(normal(40, 1) * jnp.eye(8)[0] + normal(40, 1, seed=1) * jnp.eye(8)[1],
                normal(40, 8))]  # fmt: skip
    config = jlora.LoraConfig(targets="sharp|flat", rank=1, rank_pattern={"flat": 1})
    frozen, lora = jlora.split(params, config, KEY)
    _, eva, told = jlora.eva(fn, frozen, lora, batches, config, KEY)
    assert list(jlora.split(params, told, KEY)[1]) == list(eva) == ["sharp"]


def test_eva_refuses_what_it_cannot_do():
    config, _, frozen, lora = adapter()
    with pytest.raises(ValueError, match="EVA reads a few batches, but got none"):
        jlora.eva(run, frozen, lora, [], config, KEY)
    with pytest.raises(ValueError, match=r"rho is 0.5: expected a number of at least 1"):
        jlora.eva(run, frozen, lora, BATCHES, config, KEY, rho=0.5)
    with pytest.raises(ValueError, match="EVA saw no activations of layers"):
        jlora.eva(lambda p, x: x @ p["first"], frozen, lora, BATCHES, config, KEY)


@pytest.mark.parametrize("start", ["eva", "lora_ga"])
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_a_start_from_data_refuses_an_adapter_that_holds_weight(start, method, init):
    """The A and B that it would replace hold what was taken out of the frozen weight."""
    config, _, frozen, lora = adapter(init=init, method=method)
    fn = run if start == "eva" else loss
    with pytest.raises(ValueError, match=f"init is '{init}', .* split with another init"):
        getattr(jlora, start)(fn, frozen, lora, BATCHES, config, KEY)


def test_a_start_from_data_is_made_once():
    config, _, frozen, lora = adapter()
    frozen, lora, config = jlora.lora_ga(loss, frozen, lora, BATCHES[:1], config, KEY)
    with pytest.raises(ValueError, match=r"init is 'lora_ga', .* split with another init"):
        jlora.eva(run, frozen, lora, BATCHES, config, KEY)


def loss(params, x):
    return (run(params, x) * jnp.arange(9)).mean()


def test_lora_ga_starts_at_the_singular_vectors_of_the_gradient():
    config, _, frozen, lora = adapter()
    moved, started, _ = jlora.lora_ga(loss, frozen, lora, BATCHES, config, KEY, iterations=8)
    each = [jax.grad(loss)(tree(), batch) for batch in BATCHES]
    gradient = jax.tree.map(lambda *leaves: sum(leaves) / 3, *each)
    for path, node in started.items():
        u, _, vt = np.linalg.svd(np.asarray(gradient[path]).reshape(-1, node.a.shape[-2], 9))
        size = 9**0.25 / 4
        a = np.asarray(node.a).reshape(-1, *node.a.shape[-2:]) / size
        b = np.asarray(node.b).reshape(-1, 2, 9) / size
        for at in range(len(u)):
            np.testing.assert_allclose(np.abs(a[at].T @ u[at][:, :2]), np.eye(2), atol=5e-3)
            np.testing.assert_allclose(np.abs(b[at] @ vt[at][2:4].T), np.eye(2), atol=5e-3)
    assert_close(jlora.merge(moved, started), tree(), 1e-6)
    plain, _ = jlora.rebase(
        trained(started), started, jlora.LoraConfig(targets="first|layers", rank=2, alpha=6)
    )
    assert_close(jlora.merge(tree(), plain), jlora.merge(moved, trained(started)), 1e-5)


def test_the_first_step_of_lora_ga_goes_where_full_fine_tuning_would():
    """The paper's claim: the change of W is nearer to the gradient than a random start's."""
    config, _, frozen, lora = adapter(targets="first")
    moved, started, _ = jlora.lora_ga(loss, frozen, lora, BATCHES[:1], config, KEY)
    gradient = jax.grad(loss)(tree(), BATCHES[0])["first"]

    def cosine(frozen, lora):
        grads = jax.grad(lambda lora: jlora.lift(loss)(frozen, lora, BATCHES[0]))(lora)
        stepped = jax.tree.map(lambda v, g: v - 1e-4 * g, lora, grads)
        change = jlora.merge(frozen, lora)["first"] - jlora.merge(frozen, stepped)["first"]
        return float((change * gradient).sum() / jnp.linalg.norm(change))

    assert cosine(moved, started) > 1.3 * cosine(frozen, lora)


def test_lora_ga_keeps_magnitudes_and_other_nodes():
    config, _, frozen, lora = adapter(targets="first", method="dora", train="layers")
    moved, started, _ = jlora.lora_ga(loss, frozen, lora, BATCHES, config, KEY)
    assert list(started) == list(lora)
    assert isinstance(started["first"], jlora.DoraWeight)
    assert_close(jlora.merge(moved, started), tree(), 1e-5)


def test_lora_ga_refuses_what_it_cannot_do():
    config, _, frozen, lora = adapter(rank=5)
    with pytest.raises(ValueError, match=r"takes 2 \* 5 directions of first, a matrix of 12 x 9"):
        jlora.lora_ga(loss, frozen, lora, BATCHES, config, KEY)
    config, _, frozen, lora = adapter()
    with pytest.raises(ValueError, match="no gradient with respect to first"):
        jlora.lora_ga(lambda p, x: 0 * loss(p, x), frozen, lora, BATCHES, config, KEY)
    only = {"first": jlora.WholeWeight(tree()["first"])}
    with pytest.raises(ValueError, match="LoRA-GA starts A and B, but no node"):
        jlora.lora_ga(loss, frozen, only, BATCHES, config, KEY)
    wrong = {"first": dataclasses.replace(lora["first"], a=normal(3, 2))}
    with pytest.raises(ValueError, match="does not fit"):
        jlora.eva(run, frozen, wrong, BATCHES, jlora.LoraConfig(targets="first"), KEY)
