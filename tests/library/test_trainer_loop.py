"""The loop takes batches by number, goes on where a state stands, and stops when it is told to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import trainer

KEY = jax.random.key(3)


def losses(params, x):
    return ((x @ params["kernel"]) ** 2).sum(), x.shape[0]


@pytest.fixture(scope="module")
def parts():
    config = jlora.LoraConfig(targets="kernel", rank=2)
    frozen, lora = jlora.split({"kernel": jax.random.normal(KEY, (7, 5))}, config, KEY)
    tx = jlora.optimizer(optax.adam(0.05))
    step = trainer.make_step(jlora.lift(losses), tx)
    return step, frozen, lambda: trainer.init(lora, tx, KEY)


def batches(number):
    return jax.random.normal(jax.random.fold_in(KEY, number), (4, 7))


def test_a_run_that_stops_and_goes_on_is_the_run_that_never_stopped(parts):
    step, frozen, start = parts
    whole = trainer.fit(step, frozen, start(), batches, steps=5)
    half = trainer.fit(step, frozen, start(), batches, steps=2)
    asked = []
    again = trainer.fit(
        step, frozen, half, lambda number: asked.append(number) or batches(number), steps=5
    )
    jax.tree.map(np.testing.assert_array_equal, whole.lora, again.lora)
    assert asked == [2, 3, 4]
    assert int(again.step) == 5


def test_each_update_is_given_with_its_number_and_the_last_one_is_told(parts):
    step, frozen, start = parts
    seen, counts = [], []
    for update in trainer.iterate(step, frozen, start(), batches, steps=3):
        seen.append((update.number, int(update.state.step), update.last))
        counts.append(int(update.metrics["count"]))
    assert seen == [(1, 1, False), (2, 2, False), (3, 3, True)]
    assert counts == [4, 4, 4]
    done = trainer.fit(step, frozen, start(), batches, steps=3)
    asked = []
    assert list(trainer.iterate(step, frozen, done, asked.append, steps=3)) == asked == []


def test_callbacks_run_in_their_order_and_the_one_that_says_true_ends_the_run(parts):
    step, frozen, start = parts
    seen = []
    callbacks = [
        trainer.every(2, lambda update: seen.append(("second", update.number))),
        lambda update: update.number == 3,
        lambda update: seen.append(("each", update.number)),
    ]
    state = trainer.fit(step, frozen, start(), batches, steps=9, callbacks=callbacks)
    assert int(state.step) == 3
    assert seen == [("each", 1), ("second", 2), ("each", 2), ("each", 3)]


def test_every_acts_on_the_last_update_unless_it_is_told_not_to():
    for last, wanted in ((True, [3, 5]), (False, [3])):
        seen = []
        callback = trainer.every(3, lambda update, seen=seen: seen.append(update.number), last=last)
        for number in range(1, 6):
            callback(trainer.Update(number, None, {}, last=number == 5))
        assert seen == wanted
    with pytest.raises(ValueError, match="every 0 updates: expected at least 1"):
        trainer.every(0, print)


def test_dropout_is_no_part_of_what_is_measured():
    params, rows = {"kernel": jax.random.normal(KEY, (7, 5))}, batches(0)
    measured = []
    for dropout in (0.0, 0.6):
        config = jlora.LoraConfig(targets="kernel", rank=2, dropout=dropout, init="pissa")
        frozen, lora = jlora.split(params, config, KEY)
        measured.append(trainer.mean_loss(jlora.lift(losses), frozen, lora, [rows]))
    assert measured[0] == measured[1]


def test_the_measured_loss_is_the_same_however_rows_are_spread_over_batches():
    params = {"kernel": jax.random.normal(KEY, (7, 5))}
    frozen, lora = jlora.split(params, jlora.LoraConfig(targets="kernel", rank=2), KEY)
    rows = jax.random.normal(jax.random.key(1), (9, 7))
    loss = jax.jit(jlora.lift(losses))
    wanted = float(((rows @ params["kernel"]) ** 2).sum()) / 9
    for cuts in ([], [1], [4, 8]):
        parts = jnp.split(rows, cuts)
        assert trainer.mean_loss(loss, frozen, lora, parts) == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(ValueError, match="nothing to measure"):
        trainer.mean_loss(loss, frozen, lora, [])
