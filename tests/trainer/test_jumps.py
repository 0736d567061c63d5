"""A loss that jumps warns, once; noise and a loss that falls do not."""

import math
import random

import pytest

from jlora import trainer


def series(seed, noise, steps=480):
    """Losses as runs have them: a fall from 4 to 0.06 in the first third, noise times the loss."""
    drawn = random.Random(seed)
    return [
        (0.06 + 3.9 * math.exp(-step / 35)) * math.exp(drawn.gauss(0, noise))
        for step in range(steps)
    ]


def warned(losses, jumps=None):
    """The steps that it warns at."""
    jumps = jumps or trainer.Jumps()
    steps = []
    for step, loss in enumerate(losses):
        jumps = jumps.after(step, loss)
        steps += [step] if jumps.jumped else []
    return steps


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2, 0.5])
def test_noise_and_the_fall_of_the_warm_up_are_no_jump(noise):
    seen = [warned(series(seed, noise)) for seed in range(8)]
    assert seen == [[]] * 8


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15])
def test_a_jump_to_three_times_the_loss_warns_once(noise):
    for seed in range(4):
        losses = series(seed, noise)
        for at in (300, 460):
            once = [loss * (3.5 if step == at else 1) for step, loss in enumerate(losses)]
            stays = [loss * (3.5 if step >= at else 1) for step, loss in enumerate(losses)]
            assert warned(once) == warned(stays) == [at]


def test_a_loss_that_rises_for_good_warns_again_after_a_window():
    losses = [1.0] * 20 + [3.0] * 20 + [9.0] * 20
    assert warned(losses, trainer.Jumps(window=20)) == [20, 41]
    assert warned([1.0] * 20 + [2.4] * 20) == []
    assert warned([1.0] * 20 + [2.4] * 20, trainer.Jumps(factor=2.0)) == [20]


def test_the_words_say_where_and_how_far():
    jumps = trainer.Jumps().over({"step": step, "loss": 0.5} for step in range(1, 31))
    assert jumps.warning is None
    jumps = jumps.after(31, 2.0)
    assert jumps.warning == (
        "the loss jumped to 2.000 at step 31, 4.0 times the median of the 30 before"
    )


def test_a_resumed_series_warns_where_the_whole_one_does(tmp_path):
    losses = [loss * (4 if step > 300 else 1) for step, loss in enumerate(series(5, 0.1))]
    losses[299] = math.nan
    path = tmp_path / "metrics.jsonl"
    with trainer.Metrics(path) as metrics:
        for step, loss in enumerate(losses):
            metrics.write(step, {"loss": loss})
            if step % 50 == 0:
                metrics.write(step, {"eval/loss": loss})
    rows = trainer.read_metrics(path)
    whole = trainer.Jumps().over(rows)
    for cut in (250, 301, 320):
        resumed = trainer.Jumps().over(row for row in rows if row["step"] <= cut)
        assert resumed.over(row for row in rows if row["step"] > cut) == whole
        assert resumed.jumped == (cut == 301)


def test_what_is_not_finite_or_not_above_zero_is_passed_over():
    losses = [1.0] * 15
    for odd in (math.nan, math.inf, 0.0, -3.0):
        assert warned([*losses, odd, 1.0, 4.0]) == [17]


def test_ten_losses_at_least_are_known_before_one_is_judged():
    assert warned([1.0] * 9 + [9.0]) == []
    assert warned([1.0] * 10 + [9.0]) == [10]


def test_settings_that_watch_nothing_are_refused():
    with pytest.raises(ValueError, match="window is 4"):
        trainer.Jumps(window=4)
    assert trainer.Jumps(window=5).window == 5
    with pytest.raises(ValueError, match=r"factor is 1\.0"):
        trainer.Jumps(factor=1.0)
