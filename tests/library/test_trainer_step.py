"""A step is the update that plain optax makes: every setting of it, three steps written out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jlora
from jlora import trainer

KEY = jax.random.key(7)
STEPS = 3
PEAK = 0.05


def losses(params, batch):
    """Squared errors of a layer and a bias, over rows that count."""
    errors = (jnp.tanh(batch["x"] @ params["kernel"]) - batch["y"]) ** 2
    return (errors.sum(-1) * batch["weights"]).sum(), batch["weights"].sum()


def batch_of(number, weights=(1, 1, 0, 1, 1, 1)):
    x, y = (
        np.random.default_rng([number, width]).normal(size=(6, width)).astype(np.float32)
        for width in (7, 5)
    )
    return {"x": x, "y": y, "weights": np.asarray(weights, np.float32)}


def split(method="lora"):
    config = jlora.LoraConfig(targets="kernel", rank=3, alpha=6, method=method)
    params = {"kernel": jax.random.normal(KEY, (7, 5))}
    frozen, lora = jlora.split(params, config, KEY)
    node = dataclasses.replace(lora["kernel"], b=jax.random.normal(KEY, (3, 5)))
    return frozen, {"kernel": node}


def rate(count):
    """The learning rate of the update after ``count`` others: a cosine behind one of warm-up."""
    return PEAK if count == 0 else PEAK * (1 + np.cos(np.pi * (count - 1) / (STEPS - 1))) / 2


def by_hand(lora, frozen, *, optimizer="adamw", decay=0.0, clip=0.0, plus=1.0, freeze_a=False):
    """A and B after three updates, with optax's own parts and nothing of jlora's."""
    node = lora["kernel"]
    trained = {"a": node.a, "b": node.b}
    direction = {
        "adamw": optax.scale_by_adam(),
        "lion": optax.scale_by_lion(),
        "sgd": optax.identity(),
        "muon": optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0)),
        "adafactor": optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
    }[optimizer]
    state = direction.init(trained)
    for number in range(STEPS):
        batch = batch_of(number)

        def mean(trained, batch=batch):
            total, count = losses(
                {"kernel": frozen["kernel"] + 2 * trained["a"] @ trained["b"]}, batch
            )
            return total / count

        grads = jax.grad(mean)(trained)
        if freeze_a:
            grads["a"] = jnp.zeros_like(grads["a"])
        if clip:
            norm = jnp.sqrt(sum((g**2).sum() for g in grads.values()))
            assert norm > clip
            grads = {name: g * clip / norm for name, g in grads.items()}
        moves, state = direction.update(grads, state, trained)
        for name, faster in (("a", 1.0), ("b", plus)):
            if not (freeze_a and name == "a"):
                move = moves[name] + decay * trained[name]
                trained[name] = trained[name] - rate(number) * faster * move
    return trained


def three_steps(frozen, lora, tx, **options):
    step = trainer.make_step(jlora.lift(losses), tx, **options)
    state = trainer.init(lora, tx, KEY)
    for number in range(STEPS):
        state, metrics = step(frozen, state, batch_of(number))
        assert metrics["finite"]
    return state


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decay": 0.3},
        {"clip": 0.2},
        {"plus": 4.0},
        {"freeze_a": True, "clip": 0.2},
        {"optimizer": "lion", "decay": 0.3},
        {"optimizer": "sgd", "decay": 0.3, "clip": 0.2},
        {"optimizer": "adafactor", "decay": 0.3},
        {"optimizer": "muon", "decay": 0.3},
    ],
    ids=str,
)
def test_three_steps_are_those_of_plain_optax(settings):
    frozen, lora = split()
    wanted = by_hand(lora, frozen, **settings)
    freeze = "a" if settings.get("freeze_a") else ()
    rule = trainer.update_rule(
        settings.get("optimizer", "adamw"),
        trainer.schedule("cosine", PEAK, steps=STEPS, warmup=1),
        weight_decay=settings.get("decay", 0.0),
        clip=settings.get("clip", 0.0),
        lora_plus=settings.get("plus", 1.0),
    )
    tx = jlora.optimizer(rule, freeze=freeze)
    state = three_steps(frozen, lora, tx, trains=functools.partial(jlora.mask, freeze=freeze))
    node = state.lora["kernel"]
    for name in ("a", "b"):
        np.testing.assert_allclose(getattr(node, name), wanted[name], rtol=2e-5, atol=2e-6)
        moved = not np.array_equal(getattr(node, name), getattr(lora["kernel"], name))
        assert moved == (name == "b" or not freeze)


@pytest.mark.parametrize("optimizer", trainer.OPTIMIZERS)
def test_weight_decay_takes_nothing_off_a_magnitude(optimizer):
    _, lora = split("dora")
    ends = []
    for decay in (0.0, 0.5):
        rule = trainer.update_rule(optimizer, optax.constant_schedule(0.1), weight_decay=decay)
        tx = jlora.optimizer(rule)
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, lora), tx.init(lora), lora)
        ends.append(updates["kernel"])
    none, some = ends
    assert not np.asarray(some.magnitude).any()
    assert not np.asarray(none.b).any()
    np.testing.assert_allclose(some.b, -0.1 * 0.5 * lora["kernel"].b, rtol=1e-6)


@pytest.mark.parametrize("schedule", trainer.SCHEDULES)
def test_a_schedule_rises_to_its_peak_and_ends_where_it_says(schedule):
    at = trainer.schedule(schedule, PEAK, steps=50, warmup=10)
    rates = np.array([at(count) for count in range(51)])
    np.testing.assert_allclose(rates[:10], PEAK * (0.1 + 0.9 * np.arange(10) / 10), rtol=1e-5)
    assert rates.argmax() in range(10, 51)
    assert rates.max() == pytest.approx(PEAK)
    assert (np.diff(rates[10:]) <= 1e-9).all()
    wanted = {"constant": (PEAK, PEAK), "wsd": (PEAK, 0)}.get(schedule, (PEAK / 2, 0))
    assert (rates[30], rates[50]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("schedule", trainer.SCHEDULES)
def test_a_run_may_be_shorter_than_its_warm_up(schedule):
    at = trainer.schedule(schedule, PEAK, steps=2, warmup=5)
    np.testing.assert_allclose([at(0), at(1)], [PEAK / 5, PEAK * 0.36], rtol=1e-5)


def test_a_rule_neither_decays_nor_clips_unless_it_is_told_to():
    gradient, weight = jnp.full(3, 100.0), jnp.ones(3)
    rule = trainer.update_rule("sgd", optax.constant_schedule(0.1))
    moved, _ = rule.update(gradient, rule.init(weight), weight)
    np.testing.assert_allclose(moved, -0.1 * gradient, rtol=1e-6)


def test_muon_makes_each_layers_matrix_orthogonal_by_itself():
    """The update of a stack is that of its layers one by one."""
    axes = {"kernel": jlora.Axes(inputs=(1,), outputs=(2,), stack=(0,))}
    params = {"kernel": jax.random.normal(KEY, (3, 7, 5))}
    config = jlora.LoraConfig(targets="kernel", rank=2)
    _, lora = jlora.split(params, config, KEY, axes=axes)
    grads = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape, leaf.dtype), lora)
    tx = jlora.optimizer(trainer.update_rule("muon", optax.constant_schedule(PEAK)))
    moved, _ = tx.update(grads, tx.init(lora), lora)
    alone = optax.contrib.muon(PEAK)
    for name in ("a", "b"):
        whole, its = getattr(moved["kernel"], name), getattr(grads["kernel"], name)
        for layer in range(3):
            want, _ = alone.update(its[layer], alone.init(its[layer]), its[layer])
            np.testing.assert_allclose(whole[layer], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", trainer.SCHEDULES)
def test_the_rate_of_each_update_is_the_one_written_out(schedule):
    """The peak ends the warm-up; what falls would be zero at the first update that is not made."""
    steps, warmup, falls = 20, 4, 16
    at = trainer.schedule(schedule, PEAK, steps=steps, warmup=warmup)
    after = np.arange(steps + 1 - warmup) / (steps - warmup)
    wanted = {
        "cosine": (1 + np.cos(np.pi * after)) / 2,
        "linear": 1 - after,
        "constant": np.ones_like(after),
        "wsd": np.minimum(1, (steps - np.arange(warmup, steps + 1)) / (steps - falls)),
    }[schedule]
    rise = (1 + 3 * np.arange(warmup) / warmup) / 4
    rates = [at(count) for count in range(steps + 1)]
    np.testing.assert_allclose(rates, PEAK * np.array([*rise, *wanted]), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("optimizer", trainer.OPTIMIZERS)
def test_a_fresh_adapter_has_moved_after_two_updates_and_the_frozen_not_by_a_bit(optimizer):
    """In the first the gradient of A is zero, as B is; then one of zeros moves nothing at all."""
    params = {"kernel": jax.random.normal(KEY, (7, 5))}
    frozen, lora = jlora.split(params, jlora.LoraConfig(targets="kernel", rank=3), KEY)
    before = jax.tree.map(np.array, frozen)
    tx = jlora.optimizer(trainer.update_rule(optimizer, lambda count: 0.01 * (count < 2), clip=1.0))
    step, state = trainer.make_step(jlora.lift(losses), tx), trainer.init(lora, tx, KEY)
    for number in range(2):
        state, _ = step(frozen, state, batch_of(number))
    for name in ("a", "b"):
        moved = getattr(state.lora["kernel"], name) != getattr(lora["kernel"], name)
        assert moved.any()
    jax.tree.map(np.testing.assert_array_equal, before, frozen)
    after = jax.tree.map(np.array, state.lora)
    nothing_to_learn = batch_of(2) | {"x": np.zeros((6, 7)), "y": np.zeros((6, 5))}
    state, metrics = step(frozen, state, nothing_to_learn)
    assert metrics["finite"]
    assert metrics["loss"] == metrics["grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, after, state.lora)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))


# ------------------------------------------------------------------------------------------------
# Parts
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1, 1), (0, 0, 1, 0, 5, 50), (0, 0, 0, 0, 0, 2)])
def test_parts_give_the_gradient_of_the_whole_weighted_by_what_counts(weights):
    with jax.enable_x64(True):  # where the order of a sum makes no difference to speak of
        params = {"kernel": jax.random.normal(KEY, (7, 5), jnp.float64)}
        config = jlora.LoraConfig(targets="kernel", rank=3, alpha=6)
        frozen, lora = jlora.split(params, config, KEY)
        node = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), lora["kernel"])
        node = dataclasses.replace(node, b=jax.random.normal(KEY, (3, 5), jnp.float64))
        tx = jlora.optimizer(optax.sgd(0.1))
        batch = jax.tree.map(lambda array: array.astype(np.float64), batch_of(0, weights))
        (whole, seen), *others = (
            trainer.make_step(jlora.lift(losses), tx, accumulate=parts)(
                frozen, trainer.init({"kernel": node}, tx, KEY), batch
            )
            for parts in (1, 2, 3, 6)
        )
        for state, metrics in others:
            for name in ("loss", "grad_norm", "count"):
                np.testing.assert_allclose(metrics[name], seen[name], rtol=1e-12)
            for name in ("a", "b"):
                ours = getattr(state.lora["kernel"], name)
                assert ours.dtype == np.float64
                np.testing.assert_allclose(
                    ours, getattr(whole.lora["kernel"], name), rtol=1e-12, atol=1e-12
                )


def test_parts_need_the_memory_of_one():
    def wide(params, x):
        hidden = jnp.tanh(x @ params["kernel"])
        return (jnp.tanh(hidden @ hidden.T) ** 2).sum(), x.shape[0]

    config = jlora.LoraConfig(targets="kernel", rank=2)
    frozen, lora = jlora.split({"kernel": jnp.ones((16, 256))}, config, KEY)
    tx = jlora.optimizer(optax.sgd(0.1))
    state, x = trainer.init(lora, tx, KEY), jnp.ones((512, 16))
    whole, parts = (
        trainer.make_step(jlora.lift(wide), tx, accumulate=count)
        .lower(frozen, state, x)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for count in (1, 8)
    )
    assert parts < whole / 6


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_step_and_each_part_has_a_dropout_key_of_its_own(accumulate):
    keys = []

    def note(data):
        keys.append(tuple(data.tolist()))

    def loss(frozen, lora, batch, *, dropout_key):
        jax.debug.callback(note, jax.random.key_data(dropout_key))
        return (batch * lora["w"]).sum(), batch.shape[0]

    tx = optax.sgd(0.1)
    given = {"accumulate": accumulate, "trains": lambda lora: {"w": True}}
    step = trainer.make_step(loss, tx, **given)
    for _ in range(2):  # the same again from the same key
        state = trainer.init({"w": jnp.ones(3)}, tx, KEY)
        for _ in range(2):
            state, _ = step(None, state, jnp.ones((4, 3)))
        jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(keys) == 4 * accumulate
    assert len(set(keys)) == 2 * accumulate


@pytest.mark.parametrize(
    ("parts", "said"),
    [(0, "accumulate is 0: expected a number of parts"), (4, "accumulate=4 parts of 6 rows")],
)
def test_parts_that_do_not_divide_the_rows_are_an_error(parts, said):
    frozen, lora = split()
    tx = jlora.optimizer(optax.sgd(0.1))
    with pytest.raises(ValueError, match=said):
        trainer.make_step(jlora.lift(losses), tx, accumulate=parts)(
            frozen, trainer.init(lora, tx, KEY), batch_of(0)
        )


# ------------------------------------------------------------------------------------------------
# What is not finite
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_is_not_finite_changes_no_bit_of_adapter_and_moments(accumulate):
    frozen, lora = split("dora")
    tx = jlora.optimizer(trainer.update_rule("adamw", optax.constant_schedule(0.1), clip=1.0))
    step = trainer.make_step(jlora.lift(losses), tx, accumulate=accumulate)
    state, _ = step(frozen, trainer.init(lora, tx, KEY), batch_of(0))
    before = jax.tree.map(np.array, (state.lora, state.opt_state))
    bad = batch_of(1)
    bad["x"][3, 2] = np.nan
    state, metrics = step(frozen, state, bad)
    assert not metrics["finite"]
    assert np.isnan(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, before, (state.lora, state.opt_state))
    assert int(state.step) == 2
    state, metrics = step(frozen, state, batch_of(2))
    assert metrics["finite"]
    assert not np.array_equal(state.lora["kernel"].a, before[0]["kernel"].a)


def test_a_gradient_that_is_not_finite_is_left_out_though_the_loss_is():
    def root(params, x):
        return (jnp.sqrt(x @ params["scale"]) * (x @ params["kernel"])).sum(), x.shape[0]

    config = jlora.LoraConfig(targets="kernel", rank=1, train="scale")
    params = {"scale": jnp.zeros(3), "kernel": jnp.ones((3, 2))}
    frozen, lora = jlora.split(params, config, KEY)
    tx = jlora.optimizer(optax.sgd(0.1))
    step = trainer.make_step(jlora.lift(root), tx)
    before = jax.tree.map(np.array, lora)
    state, metrics = step(frozen, trainer.init(lora, tx, KEY), jnp.ones((1, 3)))
    assert (metrics["loss"], metrics["finite"]) == (0, False)
    jax.tree.map(np.testing.assert_array_equal, before, state.lora)


def test_the_norm_is_that_of_all_that_trains_and_of_that_alone():
    frozen, lora = split("dora")
    tx = jlora.optimizer(optax.sgd(0.1))
    batch = batch_of(0, weights=(1, 1, 1, 1, 1))  # of five rows: nothing takes them in parts
    batch = {name: rows[:5] for name, rows in batch.items()}

    def mean(lora):
        total, count = jlora.lift(losses)(frozen, lora, batch)
        return total / count

    node = jax.grad(mean)(lora)["kernel"]
    wanted = np.sqrt(sum(np.square(getattr(node, name)).sum() for name in node.trainable))
    step = trainer.make_step(jlora.lift(losses), tx)
    _, metrics = step(frozen, trainer.init(lora, tx, KEY), batch)
    assert metrics["grad_norm"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_in_which_nothing_counts_is_left_out_and_has_no_loss(accumulate):
    """A loss of 0 would look learned, and momentum and decay would move what it says nothing of."""
    frozen, lora = split()
    rule = trainer.update_rule("adamw", optax.constant_schedule(0.1), weight_decay=0.3)
    tx = jlora.optimizer(rule)
    step = trainer.make_step(jlora.lift(losses), tx, accumulate=accumulate)
    state, _ = step(frozen, trainer.init(lora, tx, KEY), batch_of(0))
    before = jax.tree.map(np.array, (state.lora, state.opt_state))
    state, metrics = step(frozen, state, batch_of(1, weights=np.zeros(6)))
    assert np.isnan(metrics["loss"])
    assert (metrics["count"], metrics["finite"]) == (0, False)
    jax.tree.map(np.testing.assert_array_equal, before, (state.lora, state.opt_state))


def test_an_unknown_name_is_told_with_those_there_are():
    with pytest.raises(ValueError, match="optimizer is 'adam': expected one of adamw, adafactor"):
        trainer.update_rule("adam", optax.constant_schedule(0.1))
    with pytest.raises(ValueError, match="schedule is 'step': expected one of cosine, linear"):
        trainer.schedule("step", 0.1, steps=3, warmup=1)
    for name in ("clip", "weight_decay"):
        with pytest.raises(ValueError, match=rf"^{name} is -1: expected a number of at least 0"):
            trainer.update_rule("sgd", optax.constant_schedule(0.1), **{name: -1})


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize("placed", [False, True])
def test_the_shapes_of_a_state_are_those_of_the_state_that_it_will_be(optimizer, placed):
    """Each moment lies as its factor does, and what the optimizer counts lies everywhere."""
    mesh, everywhere = jax.make_mesh((1, 1), ("data", "model")), jax.sharding.PartitionSpec()
    along = {"a": ("model", None), "b": (None, "model"), "scaling": (), "magnitude": ("model",)}
    _, lora = split("dora")
    if placed:
        named = {
            name: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
            for name, axes in along.items()
        }
        fields = vars(lora["kernel"])
        moved = {name: jax.device_put(fields[name], its) for name, its in named.items()}
        lora = {"kernel": dataclasses.replace(lora["kernel"], **moved)}

    def shape(leaf):
        given = {"sharding": leaf.sharding} if placed else {}
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, **given)

    tx = jlora.optimizer(trainer.update_rule(optimizer, rate, weight_decay=0.1, clip=1.0))
    told, state = trainer.init_shapes(jax.tree.map(shape, lora), tx), trainer.init(lora, tx, KEY)
    assert jax.tree.structure(told) == jax.tree.structure(state)
    for like, leaf in zip(jax.tree.leaves(told), jax.tree.leaves(state), strict=True):
        assert (like.shape, like.dtype) == (leaf.shape, leaf.dtype)
        lies = isinstance(leaf.sharding, jax.sharding.NamedSharding)  # on one device counts do not
        want = leaf.sharding if lies else jax.sharding.NamedSharding(mesh, everywhere)
        assert like.sharding == (want if placed else None)
