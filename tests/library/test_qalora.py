"""QA-LoRA: a delta that is the same for each block of neighbouring inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from jax import lax
from laws import adapted, assert_close, check_law_1, check_learns, trained

import jlora
from jlora import checkpoint, peft

POOLED = {"method": "qalora", "options": {"block": 3}}
KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def in_float64(node):
    return np.asarray(node.a, "f8"), np.asarray(node.b, "f8"), float(node.scaling)


def test_it_is_its_equation():
    """Algorithm 1 of the paper: the mean over each block, times the block's size, then A and B."""
    w, x = normal(12, 7), normal(5, 12, seed=1)
    frozen, lora = adapted({"w": w}, **POOLED)
    a, b, scaling = in_float64(lora["w"])
    assert a.shape == (4, 3)
    x64, w64 = np.asarray(x, "f8"), np.asarray(w, "f8")
    pooled = x64.reshape(5, 4, 3).mean(-1) * 3
    want = x64 @ w64 + scaling * pooled @ a @ b
    got = jlora.lift(lambda p, x: x @ p["w"], strict=True)(frozen, lora, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_its_gradient_is_that_of_finite_differences():
    w, x = normal(12, 7), normal(5, 12, seed=1)
    frozen, lora = adapted({"w": w}, **POOLED)
    a, b, scaling = in_float64(lora["w"])
    x64, w64 = np.asarray(x, "f8"), np.asarray(w, "f8")

    def loss(a):
        y = x64 @ w64 + scaling * x64.reshape(5, 4, 3).sum(-1) @ a @ b
        return np.sin(y).sum()

    step = 1e-6
    want = np.zeros_like(a)
    for at in np.ndindex(*a.shape):
        moved = np.zeros_like(a)
        moved[at] = step
        want[at] = (loss(a + moved) - loss(a - moved)) / (2 * step)
    lifted = jlora.lift(lambda p: jnp.sin(x @ p["w"]).sum(), strict=True)
    got = jax.grad(lifted, argnums=1)(frozen, lora)["w"]
    np.testing.assert_allclose(got.a, want, rtol=1e-3, atol=1e-3)
    assert not np.asarray(got.scaling).any()


def test_the_delta_is_constant_over_each_block_and_over_no_more():
    frozen, lora = adapted({"w": normal(12, 7)}, **POOLED)
    node = lora["w"]
    delta = np.asarray(node.delta()).reshape(4, 3, 7)
    assert np.ptp(delta, axis=1).max() < 1e-6
    assert np.abs(np.diff(delta[:, 0], axis=0)).min() > 1e-4
    assert node.constant_along == (0, 3)
    assert_close(jlora.unmerge(jlora.merge(frozen, lora), lora), frozen, 1e-5)


def heads(p, x):
    y = jnp.einsum("bd,dhk->bhk", x, p["query"])
    return jnp.einsum("bhk,hkd->bd", jnp.tanh(y), p["out"])


def layers(p, x):
    def layer(x, w):
        return jnp.tanh(x @ w @ jnp.ones((7, 6)) / 7), None

    return lax.scan(jax.checkpoint(layer), x, p["w"])[0]


STACK = jlora.Axes((1,), (2,), (0,))
PROGRAMS = {
    "transposed": (lambda p, x: x @ p["w"].T, {"w": (7, 6)}, {"w": jlora.Axes((1,), (0,))}),
    "a table": (
        lambda p, x: p["w"][jnp.arange(5)] @ jnp.tanh(p["w"]).T[:, :3] + x.sum(),
        {"w": (12, 7)},
        None,
    ),
    "heads": (
        heads,
        {"query": (6, 2, 9), "out": (2, 9, 6)},
        {"query": jlora.Axes((0,), (1, 2)), "out": jlora.Axes((0, 1), (2,))},
    ),
    "layers": (layers, {"w": (4, 6, 7)}, {"w": STACK}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_lifted_is_merged_in(name):
    fn, shapes, axes = PROGRAMS[name]
    params = {path: normal(*shape, seed=at) for at, (path, shape) in enumerate(shapes.items())}
    ranks = {"rank_pattern": {"w": (3, 1, 2, 3)}} if name == "layers" else {}
    frozen, lora = adapted(params, axes, **POOLED, **ranks)
    merged = int(name == "a table")  # tanh of a weight
    check_law_1(fn, frozen, lora, normal(5, 6, seed=9), merged=merged)


def test_inputs_of_several_dimensions_are_pooled_as_one():
    _, lora = adapted({"w": normal(2, 9, 5)}, {"w": jlora.Axes((0, 1), (2,))}, **POOLED)
    node = lora["w"]
    assert node.a.shape == (6, 3)
    assert np.ptp(np.asarray(node.delta()).reshape(6, 3, 5), axis=1).max() < 1e-6
    assert node.constant_along == (1, 3)
    whole = adapted({"w": normal(9, 2, 5)}, {"w": jlora.Axes((0, 1), (2,))}, **POOLED)[1]["w"]
    assert np.ptp(np.asarray(whole.delta()).reshape(6, 3, 5), axis=1).max() < 1e-6
    assert whole.constant_along is None  # a block lies across the last dimension's end


def test_it_learns_and_what_is_frozen_stays():
    params, x = {"w": normal(12, 7)}, normal(50, 12, seed=1)
    config = jlora.LoraConfig(targets="w", rank=2, **POOLED)
    frozen, lora = jlora.split(params, config, KEY)
    wanted = x @ (params["w"] + jnp.repeat(normal(4, 7, seed=2), 3, 0))
    check_learns(lambda p: ((x @ p["w"] - wanted) ** 2).mean(), frozen, lora)


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal"])
def test_it_starts_as_the_base_with_a_as_strong_as_loras(init):
    params = {"w": normal(960, 7)}
    config = jlora.LoraConfig(targets="w", rank=4, init=init, method="qalora")
    frozen, lora = jlora.split(params, config, KEY)
    assert lora["w"].a.shape == (30, 4)  # blocks of 32 unless it is said
    assert_close(jlora.merge(frozen, lora), params, 1e-6)
    plain = jlora.split(params, jlora.LoraConfig(targets="w", rank=4, init=init), KEY)[1]["w"]
    x = normal(400, 960, seed=3)
    pooled = x.reshape(400, 30, 32).sum(-1) @ lora["w"].a
    assert float(pooled.std() / (x @ plain.a).std()) == pytest.approx(1, abs=0.25)


def test_what_it_cannot_be_is_told_before_any_work():
    for options, told in (
        ({"init": "pissa"}, "init is 'pissa', but 'qalora' takes kaiming, gaussian, orth"),
        ({"init": "kiming"}, "init is 'kiming', but 'qalora' takes kaiming"),
        ({"options": {"block": 0}}, "block is 0: expected a whole number of inputs"),
        ({"options": {"block": True}}, "block is True: expected"),
        ({"options": {"block": 2.5}}, "block is 2.5: expected"),
        ({"options": {"group": 3}}, "it has the options block"),
    ):
        with pytest.raises(ValueError, match=told):
            jlora.LoraConfig(targets="w", **{**POOLED, **options})
    jlora.LoraConfig(targets="w", **{**POOLED, "options": {"block": 1}})
    params = {"w": normal(12, 7), "v": normal(7, 12), "u": normal(32, 5), "t": normal(40, 5)}
    config = jlora.LoraConfig(targets=".", rank=2, method="qalora")
    with pytest.raises(ValueError, match="which blocks of 32 do not divide") as told:
        jlora.split(params, config, KEY)
    assert [path in str(told.value) for path in ("w has 12", "v has 7", "t has 40")] == [True] * 3
    assert "u has" not in str(told.value)
    frozen, lora = adapted({"w": params["w"]}, **POOLED)
    its = jlora.LoraConfig(targets="w", rank=3, **POOLED)
    with pytest.raises(ValueError, match="that of w is for blocks of inputs"):
        jlora.eva(lambda p, x: x @ p["w"], frozen, lora, [normal(5, 12)], its, KEY)
    wrong = {"w": dataclasses.replace(lora["w"], a=lora["w"].a[:2])}
    with pytest.raises(ValueError, match=r"A has 2 rows for blocks of 3, the leaf has \(12,\)"):
        jlora.merge(frozen, wrong)
    with pytest.raises(ValueError, match="an A of QA-LoRA is for blocks of 3 inputs"):
        lora["w"].part(0, 0)


def test_sums_of_several_stay_pooled():
    params = {"w": normal(4, 12, 7)}
    one = adapted(params, {"w": STACK}, rank_pattern={"w": (1, 3, 2, 3)}, seed=1, **POOLED)[1]
    two = adapted(params, {"w": STACK}, rank=2, seed=2, **POOLED)[1]
    both = jlora.combine([one, two], [0.5, -2.0])
    want = 0.5 * one["w"].delta() - 2 * two["w"].delta()
    np.testing.assert_allclose(both["w"].delta(), want, atol=1e-4)
    assert isinstance(both["w"], jlora.QaLoraWeight)
    three = adapted(params, {"w": STACK}, seed=3, rank=2, **POOLED)[1]
    linear = jlora.combine([two, three], [1.0, 1.0], method="linear")
    assert (linear["w"].rank, linear["w"].a.shape) == (2, (4, 4, 2))
    other = adapted(params, {"w": STACK}, method="qalora", options={"block": 4})[1]
    with pytest.raises(ValueError, match="their blocks of inputs have other sizes"):
        jlora.combine([one, other], [1.0, 1.0])


def test_since_its_start_it_is_a_pooled_adapter_of_twice_the_rank():
    params = {"w": normal(12, 7)}
    config = jlora.LoraConfig(targets="w", rank=2, init="orthogonal", **POOLED)
    frozen, start = jlora.split(params, config, KEY)
    lora = trained(start)
    plain, wider = jlora.rebase(lora, start, config)
    assert isinstance(plain["w"], jlora.QaLoraWeight)
    assert wider.rank == plain["w"].rank
    assert_close(jlora.merge(params, plain), jlora.merge(frozen, lora), 1e-5)


def test_its_files_give_it_back(tmp_path):
    params = {"w": normal(12, 7)}
    frozen, lora = adapted(params, **POOLED)
    config = jlora.LoraConfig(targets=".", rank=3, alpha=5.0, **POOLED)
    checkpoint.save(tmp_path / "own", lora, config, base=frozen)
    again, same = checkpoint.restore(tmp_path / "own", base=frozen)
    assert same == config
    assert jax.tree.structure(again) == jax.tree.structure(lora)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, lora))
    state = serialization.to_state_dict(lora)
    assert_close(serialization.from_state_dict(lora, state), lora, 0)
    peft.save(tmp_path / "peft", lora, config, frozen, names={"w": "model.w"})
    plain, its = peft.load(tmp_path / "peft", frozen, names={"w": "model.w"})
    assert (type(plain["w"]), its.method) == (jlora.LoraWeight, "lora")  # A as plain LoRA has it
    assert_close(jlora.merge(frozen, plain), jlora.merge(frozen, lora), 1e-6)


def test_adapters_side_by_side_and_dropout():
    frozen, one = adapted({"w": normal(12, 7)}, dropout=0.5, **POOLED)
    other = trained(one, 5)
    apply = jlora.lift(lambda p, x: x @ p["w"], strict=True)
    x = normal(2, 5, 12, seed=4)
    pool = jax.tree.map(lambda *each: jnp.stack(each), one, other)
    got = jax.vmap(apply, in_axes=(None, 0, 0))(frozen, pool, x)
    want = jnp.stack(
        [apply(frozen, lora, rows) for lora, rows in zip((one, other), x, strict=True)]
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    dropped = apply(frozen, one, x[0], dropout_key=KEY)
    assert np.abs(dropped - want[0]).max() > 0.1
