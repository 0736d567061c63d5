"""Law 7: what does not train does not change, and the optimizer holds nothing for it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from laws import adapted

import jlora

X = jax.random.normal(jax.random.key(3), (13, 7))
Y = jax.random.normal(jax.random.key(4), (13, 5))


def base():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "in": {"kernel": jax.random.normal(keys[0], (7, 11)), "bias": jnp.ones(11)},
        "out": {"kernel": jax.random.normal(keys[1], (11, 5)), "bias": jnp.ones(5)},
    }


def forward(params, x):
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def loss(frozen, lora):
    return ((jlora.lift(forward, strict=True)(frozen, lora, X) - Y) ** 2).mean()


def train(tx, tree, of, steps=4):
    """The tree after some steps with the gradients of ``of(tree)``."""
    state = tx.init(tree)

    @jax.jit
    def step(tree, state):
        updates, state = tx.update(jax.grad(of)(tree), state, tree)
        return optax.apply_updates(tree, updates), state

    for _ in range(steps):
        tree, state = step(tree, state)
    return tree, state


def assert_unmoved(tree, before):
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(before), strict=True):
        assert np.array_equal(one, other)


def assert_trained(lora, before):
    assert lora.keys() == before.keys()
    for path, node in lora.items():
        assert np.abs(node.a - before[path].a).max() > 1e-4
        assert np.abs(node.b - before[path].b).max() > 1e-4
        assert node.scaling == before[path].scaling


DECAYING = optax.adamw(1e-2, weight_decay=0.1)


def test_the_lora_dict_alone_trains_and_its_scaling_stays():
    frozen, lora = adapted(base())
    trained, _ = train(jlora.optimizer(DECAYING), lora, lambda lora: loss(frozen, lora))
    assert_trained(trained, lora)


def test_frozen_leaves_beside_the_adapter_stay_bit_for_bit():
    """With gradients of the whole tree, and weight decay: the way a TrainState is used."""
    frozen, lora = adapted(base())
    tree = {"frozen": frozen, "lora": lora}
    trained, _ = train(jlora.optimizer(DECAYING), tree, lambda t: loss(t["frozen"], t["lora"]))
    assert_unmoved(trained["frozen"], base())
    assert_trained(trained["lora"], lora)


def test_a_flax_train_state_changes_its_adapter_alone():
    frozen, lora = adapted(base())
    state = TrainState.create(
        apply_fn=jlora.lift(forward, strict=True),
        params={"frozen": frozen, "lora": lora},
        tx=jlora.optimizer(DECAYING),
    )

    @jax.jit
    def step(state):
        def of(params):
            return ((state.apply_fn(params["frozen"], params["lora"], X) - Y) ** 2).mean()

        value, grads = jax.value_and_grad(of)(state.params)
        return state.apply_gradients(grads=grads), value

    losses = []
    for _ in range(4):
        state, value = step(state)
        losses.append(float(value))
    assert losses == sorted(losses, reverse=True)
    assert_unmoved(state.params["frozen"], base())
    assert_trained(state.params["lora"], lora)


def test_the_state_holds_two_moments_of_a_and_b_and_no_more():
    frozen, lora = adapted(base())
    for tree in (lora, {"frozen": frozen, "lora": lora}, [lora, frozen]):
        state = jlora.optimizer(optax.adam(1e-2)).init(tree)
        held = sorted(leaf.shape for leaf in jax.tree.leaves(state))
        assert held == sorted([(), *2 * [(7, 3), (3, 11), (11, 3), (3, 5)]])


def test_the_mask_is_true_at_a_and_b_and_the_labels_say_so_in_words():
    frozen, lora = adapted({"w": jnp.ones((7, 11)), "b": jnp.ones(11)})
    tree = {"frozen": frozen, "lora": lora, "step": 0}

    def node(a, b, scaling):
        return {"w": jlora.LoraWeight(a=a, b=b, scaling=scaling, axes=jlora.Axes())}

    assert jlora.mask(tree) == {
        "frozen": {"w": False, "b": False},
        "lora": node(True, True, False),
        "step": False,
    }
    assert jlora.labels(tree) == {
        "frozen": {"w": "freeze", "b": "freeze"},
        "lora": node("train", "train", "freeze"),
        "step": "freeze",
    }
    assert jlora.labels(lora) == node("train", "train", "freeze")
    assert jlora.mask(frozen) == {"w": False, "b": False}


def test_an_update_is_the_inner_optimizers_own():
    frozen, lora = adapted(base())
    grads = jax.jit(jax.grad(lambda lora: loss(frozen, lora)))(lora)
    plain = {path: (node.a, node.b) for path, node in lora.items()}
    plain_grads = {path: (node.a, node.b) for path, node in grads.items()}
    expected, _ = jax.jit(DECAYING.update)(plain_grads, DECAYING.init(plain), plain)
    tx = jlora.optimizer(DECAYING)
    updates, _ = jax.jit(tx.update)(grads, tx.init(lora), lora)
    for path, (a, b) in expected.items():
        np.testing.assert_allclose(updates[path].a, a, rtol=1e-6)
        np.testing.assert_allclose(updates[path].b, b, rtol=1e-6)
        assert updates[path].scaling == 0


def test_clipping_inside_sees_the_norm_of_what_trains():
    frozen, lora = adapted(base())
    tree = {"frozen": frozen, "lora": lora}
    grads = jax.jit(jax.grad(lambda t: loss(t["frozen"], t["lora"])))(tree)
    tx = jlora.optimizer(optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0)))
    updates, _ = jax.jit(tx.update)(grads, tx.init(tree), tree)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.01, rtol=1e-5)


def test_a_schedule_counts_the_steps():
    frozen, lora = adapted(base())
    tx = jlora.optimizer(optax.sgd(optax.piecewise_constant_schedule(0.1, {2: 0.0})))
    of = lambda lora: loss(frozen, lora)  # noqa: E731
    two, _ = train(tx, lora, of, steps=2)
    assert_trained(two, lora)
    assert_unmoved(train(tx, lora, of, steps=4)[0], two)


@pytest.mark.parametrize("inside", [True, False])
def test_steps_accumulate(inside):
    frozen, lora = adapted(base())
    every_third = lambda tx: optax.MultiSteps(tx, every_k_schedule=3)  # noqa: E731
    tx = (
        jlora.optimizer(every_third(DECAYING)) if inside else every_third(jlora.optimizer(DECAYING))
    )
    of = lambda t: loss(t["frozen"], t["lora"])  # noqa: E731
    tree = {"frozen": frozen, "lora": lora}
    assert_unmoved(train(tx, tree, of, steps=2)[0], tree)
    trained, _ = train(tx, tree, of, steps=3)
    assert_trained(trained["lora"], lora)
    assert_unmoved(trained["frozen"], frozen)


def test_an_injected_learning_rate_can_be_set():
    frozen, lora = adapted(base())
    tx = optax.inject_hyperparams(lambda rate: jlora.optimizer(optax.adamw(rate)))(rate=0.0)
    of = lambda lora: loss(frozen, lora)  # noqa: E731
    same, state = train(tx, lora, of, steps=1)
    assert_unmoved(same, lora)
    state.hyperparams["rate"] = jnp.float32(1e-2)
    updates, _ = tx.update(jax.grad(of)(lora), state, lora)
    assert_trained(optax.apply_updates(lora, updates), lora)


def test_optimizers_that_need_the_value_get_it():
    frozen, lora = adapted(base())
    tx = jlora.optimizer(optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()))
    value, grads = jax.jit(jax.value_and_grad(lambda lora: loss(frozen, lora)))(lora)
    updates, _ = tx.update(grads, tx.init(lora), lora, value=value)
    assert_trained(optax.apply_updates(lora, updates), lora)


def test_many_adapters_train_side_by_side_as_if_alone():
    frozen, one = adapted(base())
    _, other = adapted(base(), alpha=9.0, seed=7)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
    tx = jlora.optimizer(DECAYING)
    of = lambda lora: loss(frozen, lora)  # noqa: E731

    def step(lora, state):
        updates, state = tx.update(jax.grad(of)(lora), state, lora)
        return optax.apply_updates(lora, updates), state

    state = jax.vmap(tx.init)(both)
    together, _ = jax.lax.scan(
        lambda carry, _: (jax.vmap(step)(*carry), None), (both, state), length=3
    )[0]
    for at, alone in enumerate((one, other)):
        expected, _ = train(tx, alone, of, steps=3)
        for path, node in expected.items():
            np.testing.assert_allclose(together[path].a[at], node.a, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(together[path].b[at], node.b, rtol=1e-4, atol=1e-6)
            assert together[path].scaling[at] == node.scaling


# LoRA+, LoRA-FA, decay


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.chain(optax.clip_by_global_norm(0.5), tx),
    ],
    ids=["plain", "multi_steps", "clipped"],
)
def test_lora_plus_is_a_higher_rate_for_b(wrap):
    """As two optimizers, one for each factor, which is how the paper has it."""
    frozen, lora = adapted(base(), targets="kernel")
    schedule = optax.linear_schedule(1e-2, 1e-3, 5)
    plus = wrap(optax.chain(optax.adamw(schedule, weight_decay=0.1), jlora.lora_plus(4)))
    apart = optax.partition(
        {
            rate: optax.adamw(lambda step, rate=rate: rate * schedule(step), weight_decay=0.1)
            for rate in (1, 4)
        },
        lambda tree: jax.tree_util.tree_map_with_path(
            lambda path, _: 4 if path[-1].name == "b" else 1, tree
        ),
    )
    one, _ = train(jlora.optimizer(plus), lora, lambda lora: loss(frozen, lora))
    other, _ = train(jlora.optimizer(wrap(apart)), lora, lambda lora: loss(frozen, lora))
    for path, node in one.items():
        np.testing.assert_allclose(node.a, other[path].a, rtol=1e-5)
        np.testing.assert_allclose(node.b, other[path].b, rtol=1e-5)


def test_lora_plus_composes_with_injected_hyperparameters_and_refuses_nonsense():
    frozen, lora = adapted(base(), targets="kernel")

    @optax.inject_hyperparams
    def tx(learning_rate, ratio):
        return optax.chain(optax.sgd(learning_rate), jlora.lora_plus(ratio))

    tuned = jlora.optimizer(tx(learning_rate=0.01, ratio=3.0))
    fixed = jlora.optimizer(optax.chain(optax.sgd(0.01), jlora.lora_plus(3)))
    one, _ = train(tuned, lora, lambda lora: loss(frozen, lora))
    other, _ = train(fixed, lora, lambda lora: loss(frozen, lora))
    np.testing.assert_allclose(one["in/kernel"].b, other["in/kernel"].b, rtol=1e-6)
    with pytest.raises(ValueError, match=r"the ratio of LoRA\+ is 0: expected a number above 0"):
        jlora.lora_plus(0)


def test_lora_fa_holds_a_and_computes_no_gradient_of_it():
    frozen, lora = adapted(base(), targets="kernel")
    tx = jlora.optimizer(optax.adamw(1e-2, weight_decay=0.1), freeze="a")
    after, state = train(tx, lora, lambda lora: loss(frozen, lora))
    for path, node in after.items():
        assert np.array_equal(node.a, lora[path].a)
        assert np.abs(node.b - lora[path].b).max() > 1e-4
    held = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert held == 2 * sum(node.b.size for node in lora.values())
    assert jlora.mask(lora, freeze="a")["in/kernel"].a is False

    def flops(tx):
        def step(lora, state):
            updates, state = tx.update(jax.grad(lambda v: loss(frozen, v))(lora), state, lora)
            return optax.apply_updates(lora, updates), state

        return jax.jit(step).lower(lora, tx.init(lora)).compile().cost_analysis()["flops"]

    # dA = x' dy B' s is two products of 2 * rows * rank * (in + out) FLOPs in each layer
    saved = flops(jlora.optimizer(optax.sgd(1e-2))) - flops(
        jlora.optimizer(optax.sgd(1e-2), freeze="a")
    )
    assert saved > 13 * 3 * (7 + 11)


def first_state(tree, freeze):
    return jlora.optimizer(optax.sgd(0.1), freeze=freeze).init(tree)


@pytest.mark.parametrize("use", [jlora.mask, jlora.labels, first_state])
def test_freezing_what_is_no_field_is_told(use):
    frozen, lora = adapted(base(), targets="kernel", method="dora", bias="adapted")
    said = "freeze names 'A', 'scaling', which trains in no node: expected some of "
    said += "'a', 'b', 'magnitude', 'value'"
    with pytest.raises(ValueError, match=said):
        use({"frozen": frozen, "lora": lora}, freeze=("scaling", "A", "b"))
    some = jlora.mask({"frozen": frozen, "lora": lora}, freeze="magnitude")
    assert not some["lora"]["in/kernel"].magnitude
    assert jlora.mask(frozen, freeze="A") == jax.tree.map(lambda _: False, frozen)


def test_decay_is_for_a_and_b_alone():
    params = {**base(), "scale": jnp.ones(5)}
    config = jlora.LoraConfig(targets="in/kernel", rank=2, train="scale|out")
    _, lora = jlora.split(params, config, jax.random.key(0))
    decay = jlora.decay_mask({"frozen": params, "lora": lora})
    assert not any(jax.tree.leaves(decay["frozen"]))
    assert jax.tree.leaves(decay["lora"]["in/kernel"]) == [True, True, False]
    assert not any(decay["lora"][path].value for path in ("out/kernel", "out/bias", "scale"))


def test_optax_maps_over_the_state_of_what_trains():
    """As one lays the state out on a mesh: each moment is its parameter's, a count is nobody's."""
    _, lora = adapted(base(), targets="kernel")
    tx = jlora.optimizer(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)))
    state = tx.init(lora)
    mapped = optax.tree.map_params(
        tx,
        lambda moment, param: moment if moment == optax.MaskedNode() else moment + param,
        state,
        lora,
        transform_non_params=lambda count: count - 1,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    [adam] = [s for s in jax.tree.leaves(mapped, is_leaf=is_adam) if is_adam(s)]
    assert adam.count == -1
    for path, node in lora.items():
        assert np.array_equal(adam.mu[path].a, node.a)
        assert np.array_equal(adam.nu[path].b, node.b)
        assert adam.mu[path].scaling == optax.MaskedNode()


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_lora_plus_takes_any_ratio_above_0_and_keeps_dtypes(dtype):
    lora = {
        "w": jlora.LoraWeight(
            jnp.ones((3, 2), dtype), jnp.ones((2, 5), dtype), jnp.float32(1), jlora.Axes((0,), (1,))
        )
    }
    with jax.enable_x64(True):
        tx = jlora.lora_plus(0.5)
        updates, _ = tx.update(lora, tx.init(lora), lora)
        assert (updates["w"].a.dtype, updates["w"].b.dtype) == (dtype, dtype)
        assert (float(updates["w"].a[0, 0]), float(updates["w"].b[0, 0])) == (1.0, 0.5)
