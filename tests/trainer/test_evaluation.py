"""Evaluation changes nothing in training; the best is strictly better, and told from the rest."""

import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import trainer
from jlora.trainer import _stopwatch

KEY = jax.random.key(3)
STEPS = 7


def losses(params, x):
    return ((x @ params["kernel"]) ** 2).sum(), x.shape[0]


def batches(number):
    return jax.random.normal(jax.random.fold_in(KEY, number), (4, 7))


@pytest.fixture(scope="module")
def run():
    """Trains with an evaluation every so many updates: (final state, (step, scores) of each)."""
    config = jlora.LoraConfig(targets="kernel", rank=2, dropout=0.3)
    frozen, lora = jlora.split({"kernel": jax.random.normal(KEY, (7, 5))}, config, KEY)
    tx = jlora.optimizer(optax.adam(0.05))
    loss = jlora.lift(losses)
    step = trainer.make_step(loss, tx)
    measure = jax.jit(loss)
    held_out = [batches(100), batches(101)[:3]]
    evaluators = [
        lambda frozen, lora: {"loss": trainer.mean_loss(measure, frozen, lora, held_out)},
        lambda frozen, lora: {"norm": optax.tree.norm(jax.tree.map(lambda x: x * 1.0, lora))},
    ]

    def train(every):
        seen = []

        def evaluate(update):
            scores = trainer.evaluate(evaluators, frozen, update.state.lora)
            seen.append((update.number, scores))

        callbacks = [trainer.every(every, evaluate)] if every else []
        state = trainer.init(lora, tx, KEY)
        state = trainer.fit(step, frozen, state, batches, steps=STEPS, callbacks=callbacks)
        return state, seen

    return train


def test_how_often_one_evaluates_changes_nothing_in_training(run):
    never, _ = run(None)
    for every in (1, 3):
        state, _ = run(every)
        for wanted, got in zip(
            jax.tree.leaves(jax.tree.map(bits, never)),
            jax.tree.leaves(jax.tree.map(bits, state)),
            strict=True,
        ):
            np.testing.assert_array_equal(got, wanted)


def bits(array):
    """The array's own bits."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array).view(np.uint8) if array.ndim else np.asarray(array).tobytes().hex()


def test_the_last_step_is_evaluated_and_numbers_come_by_name(run):
    _, seen = run(3)
    assert [step for step, _ in seen] == [3, 6, 7]
    assert all(list(scores) == ["loss", "norm"] for _, scores in seen)
    assert all(type(value) is float for _, scores in seen for value in scores.values())
    assert seen[-1][1]["loss"] < seen[0][1]["loss"]


def test_evaluators_that_cannot_be_told_apart_or_give_no_numbers_are_refused():
    one = lambda frozen, lora: {"loss": 1.0, "accuracy": 0.5}  # noqa: E731
    with pytest.raises(ValueError, match="two evaluators give accuracy, loss"):
        trainer.evaluate([one, one], {}, {})
    with pytest.raises(ValueError, match=r"answers is \['yes'\]: expected numbers"):
        trainer.evaluate([lambda frozen, lora: {"answers": ["yes"]}], {}, {})
    assert trainer.evaluate([], {}, {}) == {}


def test_evaluation_is_not_counted_in_the_timings(monkeypatch):
    now = 0.0
    monkeypatch.setattr(_stopwatch, "time", types.SimpleNamespace(perf_counter=lambda: now))
    watch = trainer.Stopwatch()
    now = 2.0
    with watch.paused():
        now = 50.0
    now = 51.0
    assert watch.lap() == 3.0
    now = 55.0
    assert watch.lap() == 4.0

    def evaluation_that_fails():
        nonlocal now
        with watch.paused():
            now = 70.0
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        evaluation_that_fails()
    assert watch.lap() == 0.0


def told(best, values):
    """(improved, stop) after each of the values."""
    seen = []
    for step, value in enumerate(values, 1):
        best = best.after(10 * step, {best.watch: value, "other": -step})
        seen.append((best.improved, best.stop))
    return best, seen


@pytest.mark.parametrize(("direction", "sign"), [("lower", 1), ("higher", -1)])
def test_only_what_is_strictly_better_is_best_and_patience_counts_evaluations(direction, sign):
    best = trainer.Best("score", direction, patience=2)
    values = [sign * value for value in (5.0, 3.0, 3.0, 2.0, 4.0, 2.0)]
    best, seen = told(best, values)
    better, worse = (True, False), (False, False)
    assert seen == [better, better, worse, better, worse, (False, True)]
    assert (best.step, best.value) == (40, sign * 2.0)
    assert told(trainer.Best("score", direction, patience=1), [0.0, 0.0])[0].stop


@pytest.mark.parametrize("direction", trainer.DIRECTIONS)
def test_what_is_not_finite_is_never_best(direction):
    for odd in (math.nan, math.inf, -math.inf):
        best, seen = told(trainer.Best("score", direction), [odd, 1.0, odd])
        assert [improved for improved, _ in seen] == [False, True, False]
        assert best.value == 1.0
        assert not best.stop  # without patience it never does


def test_the_best_goes_through_a_checkpoint_at_any_evaluation():
    values = [5.0, 6.0, 4.0, math.nan, 7.0, 4.0]
    fresh = trainer.Best("loss", "lower", patience=3)
    whole, wanted = told(fresh, values)
    for cut in range(len(values)):
        first, seen = told(fresh, values[:cut])
        record = json.loads(json.dumps(first.record(), allow_nan=False))
        best = fresh.resumed(record)
        for step, value in enumerate(values[cut:], cut + 1):
            best = best.after(10 * step, {"loss": value})
            seen.append((best.improved, best.stop))
        assert (best, seen) == (whole, wanted)
    assert not trainer.Best("loss", "lower", patience=9).resumed(whole.record()).stop
    with pytest.raises(ValueError, match="of loss lower, now accuracy higher is wanted"):
        trainer.Best("accuracy", "higher").resumed(whole.record())


def test_settings_that_make_the_best_impossible_fail_at_the_start():
    with pytest.raises(ValueError, match="direction of loss is 'down': expected lower or higher"):
        trainer.Best("loss", "down")
    with pytest.raises(ValueError, match="patience is 0: expected at least 1"):
        trainer.Best("loss", "lower", patience=0)
    best = trainer.Best("exact_mach", "higher", patience=3)
    with pytest.raises(ValueError, match="; ") as both:
        best.check(["loss", "exact_match"], evaluations=3)
    assert "nothing gives the number 'exact_mach' (did you mean exact_match?)" in str(both.value)
    assert "a patience of 3 evaluations is never used up in 3" in str(both.value)
    with pytest.raises(ValueError, match="expected an evaluation that gives it"):
        best.check([], evaluations=9)
    trainer.Best("loss", "lower", patience=3).check(["loss"], evaluations=4)
    trainer.Best("loss", "lower").check(["loss"], evaluations=1)
    with pytest.raises(ValueError, match="after step 5 lacks 'exact_mach': it gave loss"):
        best.after(5, {"loss": 1.0})
