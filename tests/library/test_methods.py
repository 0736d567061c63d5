"""Every method passes the laws: DoRA, leaves that train whole, rows of tokens, ranks by layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from laws import adapted, assert_close, check_learns, trained

import jlora

KEY = jax.random.key(0)


def normal(*shape, seed=0, dtype="float32"):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def tree(dtype="float32"):
    return {
        "embed": normal(13, 7, seed=1, dtype=dtype),
        "up": {"kernel": normal(7, 11, seed=2, dtype=dtype), "bias": normal(11, seed=3)},
        "down": {"kernel": normal(11, 7, seed=4, dtype=dtype), "bias": normal(7, seed=5)},
        "scale": normal(7, seed=6),
    }


def fn(params, tokens):
    """Lookups, two layers, and the table again for scores."""
    x = params["embed"][tokens]
    x = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"].astype(x.dtype))
    x = x @ params["down"]["kernel"] + params["down"]["bias"].astype(x.dtype)
    return (x * params["scale"].astype(x.dtype)) @ params["embed"].T


TOKENS = np.random.default_rng(0).integers(0, 13, (3, 5))


def split(dtype="float32", axes=None, **options):
    config = jlora.LoraConfig(**{"targets": "kernel", "rank": 3, "alpha": 5, **options})
    return jlora.split(tree(dtype), config, KEY, axes=axes)


# DoRA


def by_hand(params, lora):
    """``m * V / |V|`` with V = W + scaling A B, the norm over the inputs a constant."""
    new = {**params, "up": dict(params["up"]), "down": dict(params["down"])}
    for path, node in lora.items():
        leaf = new if path == "embed" else new[path.split("/")[0]]
        name = path.split("/")[-1]
        direction = leaf[name] + node.scaling * node.a @ node.b
        norm = lax.stop_gradient(jnp.linalg.norm(direction, axis=0))
        leaf[name] = node.magnitude * direction / norm
    return new


def test_dora_is_its_equation():
    frozen, lora = split(method="dora", targets="kernel|embed")
    lora = trained(lora)
    merged = jlora.merge(frozen, lora)
    assert_close(merged, by_hand(frozen, lora))

    def loss(of):
        return lambda lora: (jnp.sin(of(lora)) * jnp.arange(13)).sum()

    want = jax.jit(jax.grad(loss(lambda lora: fn(by_hand(frozen, lora), TOKENS))))(lora)
    lifted = jlora.lift(fn, strict=True)
    got = jax.jit(jax.grad(loss(lambda lora: lifted(frozen, lora, TOKENS))))(lora)
    for path in lora:
        for name in ("a", "b", "magnitude"):
            assert_close(getattr(got[path], name), getattr(want[path], name), 1e-4)


def test_a_fresh_dora_changes_nothing_and_its_magnitudes_are_the_norms():
    frozen, lora = split(method="dora")
    assert_close(jlora.merge(frozen, lora), frozen, 1e-6)
    norms = np.linalg.norm(tree()["up"]["kernel"], axis=0)
    np.testing.assert_allclose(lora["up/kernel"].magnitude, norms, rtol=1e-6)


def test_a_column_of_zeros_stays_zero_under_dora():
    params = {"w": normal(7, 5).at[:, 2].set(0)}
    config = jlora.LoraConfig(targets="w", rank=2, method="dora")
    frozen, lora = jlora.split(params, config, KEY)
    assert_close(jlora.merge(frozen, lora), params, 1e-6)
    grads = jax.grad(lambda lora: jlora.lift(lambda p: p["w"].sum())(frozen, lora))
    with pytest.warns(jlora.MaterialisedWarning):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads(lora)))


@pytest.mark.parametrize("method", ["lora", "dora"])
class TestEveryUse:
    """Law 1 with nothing merged, for uses in which magnitudes have to find their place."""

    def test_kernels_of_several_dimensions_in_a_scan(self, check_law_1, method):
        params = {"w": normal(4, 7, 2, 3)}
        axes = {"w": jlora.Axes((1,), (2, 3), (0,))}

        def fn(p, x):
            def step(x, w):
                return jnp.tanh(jnp.einsum("bi,ihd->bhd", x, w).reshape(5, 6) @ jnp.ones((6, 7))), x

            return lax.scan(jax.checkpoint(step), x, p["w"])

        check_law_1(fn, *adapted(params, axes, method=method), normal(5, 7))

    def test_the_other_way_round(self, check_law_1, method):
        """Where the outputs are contracted, the activation takes the magnitudes."""
        params = {"w": normal(7, 5)}
        check_law_1(lambda p, x: x @ p["w"].T, *adapted(params, method=method), normal(3, 5))

    def test_fused_weights_side_by_side_with_one_that_is_not_adapted(self, check_law_1, method):
        params = {name: normal(7, 5, seed=seed) for seed, name in enumerate("qkv")}

        def fn(p, x):
            fused = jnp.concatenate([p["q"], p["k"], p["v"]], 1)
            return jnp.split(x @ fused, 3, -1), x @ fused[:, 3:12]

        check_law_1(fn, *adapted(params, targets="q|v", method=method), normal(3, 7))

    def test_stacked_layers_and_one_of_them(self, check_law_1, method):
        params = {name: normal(7, 7, seed=seed) / 3 for seed, name in enumerate("abc")}

        def fn(p, x):
            layers = jnp.stack([p["a"], p["b"], p["c"]])
            return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x @ layers[1], layers)[0]

        check_law_1(fn, *adapted(params, method=method), normal(3, 7))

    def test_convolutions(self, check_law_1, method):
        params = {"w": normal(3, 3, 4, 8)}
        axes = {"w": jlora.Axes((0, 1, 2), (3,))}

        def fn(p, x):
            return lax.conv_general_dilated(
                x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        frozen, lora = adapted(params, axes, rank=2, method=method)
        check_law_1(fn, frozen, lora, normal(2, 5, 5, 4))

    def test_experts(self, check_law_1, method):
        params = {"w": normal(3, 7, 5)}
        axes = {"w": jlora.Axes((1,), (2,), (0,))}
        sizes = jnp.array([2, 0, 4])

        def fn(p, x):
            return lax.ragged_dot(x, p["w"], sizes)

        check_law_1(fn, *adapted(params, axes, method=method), normal(6, 7))

    def test_lookups_and_scores_with_one_table(self, check_law_1, method):
        params = {"table": normal(13, 7)}

        def fn(p, tokens):
            return p["table"][tokens] @ p["table"].T

        check_law_1(fn, *adapted(params, method=method), TOKENS)

    def test_one_adapter_for_each_example(self, method):
        params = {"w": normal(7, 5)}
        frozen, one = adapted(params, method=method)
        _, other = adapted(params, method=method, seed=3)
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
        apply = jlora.lift(lambda p, x: x @ p["w"], strict=True)
        x = normal(2, 3, 7)
        got = jax.vmap(apply, in_axes=(None, 0, 0))(frozen, both, x)
        for at, lora in enumerate((one, other)):
            assert_close(got[at], x[at] @ jlora.merge(frozen, lora)["w"])


@pytest.mark.parametrize("fill", [0, 2.5, np.inf])
def test_rows_that_are_not_there_are_filled_as_the_merged_table_would(check_law_1, fill):
    frozen, lora = adapted({"table": normal(13, 7)}, method="dora")
    tokens = np.array([1, 12, 40])

    def fn(p):
        return jnp.take(p["table"], tokens, 0, mode="fill", fill_value=fill)

    check_law_1(fn, frozen, lora, factored=1)


def test_a_lookup_that_fills_with_nan_stays_factored(check_law_1):
    """As ``flax.linen.Embed`` looks up."""
    frozen, lora = adapted({"table": normal(13, 7)}, method="dora")

    def fn(p, tokens):
        return jnp.take(p["table"], tokens, 0)

    check_law_1(fn, frozen, lora, np.array([1, 12, 5]), factored=1)
    tokens = np.array([1, 12, 40])
    got = jlora.lift(fn, strict=True)(frozen, lora, tokens)
    np.testing.assert_allclose(got, fn(jlora.merge(frozen, lora), tokens), rtol=1e-5)
    assert np.isnan(got[2]).all()
    assert not np.isnan(got[:2]).any()


def test_what_the_magnitudes_cannot_pass_is_merged(check_law_1):
    params = {"v": normal(7, 5), "w": normal(7, 5, seed=1)}
    frozen, lora = adapted(params, method="dora")
    check_law_1(lambda p, x: x @ (p["v"] + p["w"]), frozen, lora, normal(3, 7), merged=2)


def test_dora_learns_and_decay_leaves_its_magnitudes_alone():
    frozen, lora = split(method="dora")
    check_learns(lambda p: ((fn(p, TOKENS) - 0.5) ** 2).mean(), frozen, lora)
    tx = jlora.optimizer(optax.adamw(0.0, weight_decay=0.1, mask=jlora.decay_mask))
    decay = jlora.decay_mask(lora)["up/kernel"]
    assert (decay.a, decay.b, decay.magnitude, decay.scaling) == (True, True, False, False)
    grads = jax.tree.map(jnp.zeros_like, lora)
    updates, _ = tx.update(grads, tx.init(lora), lora)
    assert not np.asarray(updates["up/kernel"].magnitude).any()


def test_a_merge_that_cannot_be_undone_says_so():
    for options in ({"method": "dora"}, {"train": "scale"}):
        frozen, lora = split(**options)
        with pytest.raises(ValueError, match=r"can't be unmerged(.|\n)*Keep the frozen tree"):
            jlora.unmerge(jlora.merge(frozen, lora), lora)


# Leaves that train whole


def test_a_leaf_that_trains_whole_takes_the_place_of_the_frozen_one(check_law_1):
    frozen, lora = split(train="embed|scale")
    assert set(lora) == {"up/kernel", "down/kernel", "embed", "scale"}
    assert jax.tree.map(jnp.array_equal, jlora.merge(frozen, lora), tree())
    lora = trained(lora)
    check_law_1(fn, frozen, lora, TOKENS)
    merged = jlora.merge(frozen, lora)
    assert np.array_equal(merged["scale"], lora["scale"].value)
    assert jlora.mask(lora)["scale"].value is True
    decay = jlora.decay_mask(lora)
    assert (decay["scale"].value, decay["embed"].value) == (False, False)


def test_a_half_precision_leaf_trains_in_full_precision_and_is_used_in_half(check_law_1):
    frozen, lora = split("bfloat16", train="embed", targets="up/kernel")
    assert lora["embed"].value.dtype == jnp.float32
    assert jlora.merge(frozen, lora)["embed"].dtype == jnp.bfloat16
    assert np.array_equal(jlora.merge(frozen, lora)["embed"], tree("bfloat16")["embed"])
    check_law_1(fn, frozen, trained(lora), TOKENS, tolerance=3e-2)


@pytest.mark.parametrize(
    ("bias", "paths"),
    [("adapted", {"up/bias"}), ("all", {"up/bias", "down/bias"}), ("none", set())],
)
def test_biases_train_beside_the_adapted_weights_or_everywhere(bias, paths):
    _, lora = split(targets="up/kernel", bias=bias)
    assert set(lora) == {"up/kernel"} | paths


def test_a_bias_on_b_is_scaled_as_the_product_beside_it(check_law_1):
    frozen, lora = split(targets="(up|down)/kernel", bias="lora", alpha_pattern={"down": 5})
    assert jax.tree.map(jnp.array_equal, jlora.merge(frozen, lora), tree())
    assert jlora.mask(lora)["up/bias"] == jlora.BiasDelta(True, False)
    assert jlora.decay_mask(lora)["up/bias"].delta is False
    lora = trained(lora)
    check_law_1(fn, frozen, lora, TOKENS)
    merged = jlora.merge(frozen, lora)
    for name in ("up", "down"):
        scaling, delta = lora[f"{name}/kernel"].scaling, lora[f"{name}/bias"].delta
        np.testing.assert_allclose(
            merged[name]["bias"], frozen[name]["bias"] + scaling * delta, rtol=1e-6
        )
    assert_close(jlora.unmerge(merged, lora), tree(), 1e-6)


def test_layers_that_are_not_chosen_get_no_bias_on_b():
    params = {"w": normal(4, 7, 5), "b": normal(4, 5)}
    axes = {"w": jlora.Axes((1,), (2,), (0,))}
    config = jlora.LoraConfig(targets="w", rank=2, alpha=6, layers=(1, 3), bias="lora")
    frozen, lora = jlora.split(params, config, KEY, axes=axes)
    assert list(lora["b"].scaling) == [0, 3, 0, 3]
    moved = np.asarray(jlora.merge(frozen, trained(lora))["b"] - params["b"]).any(1)
    assert list(moved) == [False, True, False, True]


def test_a_bias_on_b_needs_one_bias_for_each_adapted_weight():
    params = {
        "i": {"w": normal(7, 5)},
        "h": {"w": normal(7, 5), "w2": normal(7, 5), "b": normal(5)},
    }
    with pytest.raises(ValueError, match="i/w has no bias beside it") as error:
        jlora.split(params, jlora.LoraConfig(targets="w", rank=2, bias="lora"), KEY)
    assert "h/b stands beside h/w and h/w2: bias='lora' needs one for each" in str(error.value)


# Rows of tokens


def test_rows_of_tokens_train_and_no_other_row_moves(check_law_1):
    frozen, lora = split(tokens={"embed": (2, 11)})
    lora = trained(lora)
    check_law_1(fn, frozen, lora, TOKENS)
    merged = jlora.merge(frozen, lora)["embed"]
    moved = np.flatnonzero((merged != tree()["embed"]).any(1))
    assert list(moved) == [2, 11]
    np.testing.assert_allclose(
        merged[jnp.array([2, 11])] - tree()["embed"][jnp.array([2, 11])],
        lora["embed"].delta,
        atol=1e-6,
    )
    assert_close(jlora.unmerge(jlora.merge(frozen, lora), lora), tree(), 1e-6)


# Ranks and scalings of each leaf and layer


def stacked(**options):
    params = {"layers": {"w": normal(4, 7, 5)}, "head": normal(5, 6)}
    axes = jlora.trace_axes(stacked_fn, params, normal(3, 7))
    config = jlora.LoraConfig(**{"targets": "w", "rank": 3, "alpha": 6, **options})
    return jlora.split(params, config, KEY, axes=axes)


def stacked_fn(params, x):
    def step(x, w):
        return jnp.tanh(x @ w @ jnp.ones((5, 7)) / 5), None

    return lax.scan(step, x, params["layers"]["w"])[0][:, :5] @ params["head"]


def ranks_of(lora):
    return [int(np.linalg.matrix_rank(delta)) for delta in lora["layers/w"].delta()]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_chosen_layers_of_a_stack_are_adapted_and_no_other_moves(check_law_1, method):
    frozen, lora = stacked(layers=(1, 3), method=method)
    lora = trained(lora)
    assert ranks_of(lora) == [0, 3, 0, 3]
    check_law_1(stacked_fn, frozen, lora, normal(3, 7))
    merged = jlora.merge(frozen, lora)["layers"]["w"]
    assert np.array_equal(merged[0], frozen["layers"]["w"][0])
    assert not np.array_equal(merged[1], frozen["layers"]["w"][1])
    lifted = jlora.lift(stacked_fn)
    grads = jax.jit(jax.grad(lambda lora: lifted(frozen, lora, normal(3, 7)).sum()))(lora)
    assert not np.asarray(grads["layers/w"].b[0]).any()
    if method == "dora":
        assert [bool(row.any()) for row in grads["layers/w"].magnitude] == [False, True] * 2
    assert not np.asarray(grads["layers/w"].a[2]).any()
    assert np.asarray(grads["layers/w"].a[3]).any()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["kaiming", "pissa"])
def test_each_layer_of_a_stack_has_its_own_rank_and_scaling(init, rslora):
    frozen, lora = stacked(rank_pattern={"w": (1, 0, 4, 2)}, rslora=rslora, init=init)
    scaling = np.asarray(lora["layers/w"].scaling)
    assert scaling.shape == (4, 4)
    root = np.sqrt if rslora else (lambda rank: rank)
    expected = [[6 / root(rank) if at < rank else 0 for at in range(4)] for rank in (1, 0, 4, 2)]
    np.testing.assert_allclose(scaling, np.array(expected), rtol=1e-6)
    assert ranks_of(trained(lora)) == [1, 0, 4, 2]
    assert_close(jlora.merge(frozen, lora)["layers"]["w"], normal(4, 7, 5), 1e-6)


def test_layers_of_an_unstacked_tree_are_told_by_the_number_in_their_paths():
    params = {"layers": [{"w": normal(7, 5)} for _ in range(3)]}
    config = jlora.LoraConfig(targets="w", rank=2, layers=(0, 2))
    assert list(jlora.split(params, config, KEY)[1]) == ["layers/0/w", "layers/2/w"]


def test_rank_and_alpha_by_pattern():
    _, lora = split(rank_pattern={"up": 2, "u|d": 4}, alpha_pattern={"down": 12.0})
    assert [(n.rank, float(n.scaling)) for n in lora.values()] == [(4, 3.0), (2, 2.5)]
    assert list(lora) == ["down/kernel", "up/kernel"]


def test_an_adapter_of_several_ranks_is_summed_up_and_laid_out_like_any_other():
    frozen, lora = split(rank_pattern={"up": 2}, method="dora", train="scale")
    assert jlora.summary(frozen, lora).rank == (2, 3)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    frozen = jax.device_put(frozen, jax.sharding.NamedSharding(mesh, jax.P()))
    places = jlora.shardings(frozen, lora)
    assert jax.tree.structure(jax.device_put(lora, places)) == jax.tree.structure(lora)


def test_rebase_makes_a_plain_adapter_of_the_original_weights(check_law_1):
    for options in ({"init": "pissa"}, {"init": "olora", "rslora": True}, {"init": "orthogonal",
                    "rank": 4}, {"init": "pissa", "method": "dora"}):  # fmt: skip
        config = jlora.LoraConfig(**{"targets": "kernel", "rank": 3, "alpha": 5, **options})
        frozen, start = jlora.split(tree(), config, KEY)
        lora = trained(start)
        plain, wider = jlora.rebase(lora, start, config)
        assert plain["up/kernel"].rank == wider.rank == 2 * config.rank
        assert wider.init == ("orthogonal" if config.init == "orthogonal" else "kaiming")
        node = plain["up/kernel"]
        assert float(node.scaling) == pytest.approx(wider.scaling_for("up/kernel", wider.rank))
        assert_close(jlora.merge(tree(), plain), jlora.merge(frozen, lora), 1e-5)
        check_law_1(fn, tree(), plain, TOKENS)


def test_rebase_refuses_another_adapter():
    _, lora = split()
    other = {**lora, "up/kernel": dataclasses.replace(lora["up/kernel"], a=normal(7, 2))}
    with pytest.raises(ValueError, match="not one adapter, later and at its start: up/kernel"):
        jlora.rebase(lora, other, jlora.LoraConfig(targets="kernel"))


@pytest.mark.parametrize("layered", [False, True])
def test_what_was_learned_since_the_start_is_a_delta_of_twice_the_rank(layered):
    """Also where each layer of a stack has a scaling of its own."""
    options = {"alpha_pattern": {"layers": (3.0, 5.0, 7.0)}} if layered else {}
    params = {"layers": jax.random.normal(KEY, (3, 7, 11))}
    axes = {"layers": jlora.Axes((1,), (2,), stack=(0,))}
    config = jlora.LoraConfig(targets="layers", rank=2, init="pissa", **options)
    frozen, start = jlora.split(params, config, KEY, axes=axes)
    lora = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)
                        if leaf.ndim > 2 else leaf, start)  # fmt: skip
    learned = lora["layers"].since(start["layers"])
    assert learned.rank == 4
    assert (jnp.ndim(learned.scaling) == 2) == layered
    want = jlora.merge(frozen, lora)["layers"]
    assert_close(jlora.merge(params, {"layers": learned})["layers"], want, 1e-5)


def test_layers_of_two_stacks_have_alphas_and_ranks_by_their_first():
    w = jax.random.normal(jax.random.key(0), (2, 3, 7, 5))  # two layers of three experts
    config = jlora.LoraConfig(
        targets="w", rank=2, rank_pattern={"w": (2, 1)}, alpha_pattern={"w": (3.0, 4.0)}
    )
    axes = {"w": jlora.Axes(inputs=(2,), outputs=(3,), stack=(0, 1))}
    frozen, lora = jlora.split({"w": w}, config, jax.random.key(1), axes=axes)
    node = dataclasses.replace(lora["w"], b=jnp.ones((2, 3, 2, 5)))
    delta = jlora.merge(frozen, {"w": node})["w"] - w
    for layer, (rank, scaling) in enumerate([(2, 1.5), (1, 4.0)]):
        for expert in range(3):
            a = node.a[layer, expert][:, :rank]
            wanted = scaling * a @ jnp.ones((rank, 5))
            np.testing.assert_allclose(delta[layer, expert], wanted, rtol=1e-5, atol=1e-6)
