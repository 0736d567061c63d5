"""The figure has a panel for each thing that there is, with the numbers that were given."""

import math

import matplotlib.figure
import pytest

from jlora import trainer

STEPS = range(1, 8)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The panels of a figure by their titles."""
    saved = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *args, **options):
        saved.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)

    def draw(*args, **options):
        path = tmp_path / "training.png"
        trainer.draw(path, *args, **options)
        assert path.read_bytes().startswith(b"\x89PNG")
        return {axes.get_title("left"): axes for axes in saved[-1].axes}

    return draw


def points(line):
    return list(zip(*(axis.tolist() for axis in line.get_data()), strict=True))


def test_there_is_a_panel_for_each_thing_and_for_nothing_else(drawn):
    losses = [{"step": step, "loss": 3 / step} for step in STEPS]
    assert set(drawn(losses)) == {"loss"}
    rates = [row | {"learning_rate": 0.1} for row in losses]
    assert set(drawn(rates)) == {"loss", "learning rate"}
    paces = [row | {"tokens": 300, "seconds": 2.0} for row in losses]
    panels = drawn(paces, {"before": {"loss": 3.0}, "after": {"loss": 1.0}})
    assert set(panels) == {"loss", "tokens/s"}
    assert points(panels["tokens/s"].lines[0]) == [(step, 150.0) for step in STEPS]
    scores = {
        "before": {"loss": 3.0, "exact_match": 0.0, "perplexity": 20.1, "answers": ["yes"]},
        "after": {"loss": 0.5, "exact_match": 0.9, "perplexity": 1.6, "answers": ["no"]},
    }
    panels = drawn(losses, scores)
    assert set(panels) == {"loss", "exact match", "perplexity"}
    assert [bar.get_height() for bar in panels["perplexity"].patches] == [20.1, 1.6]
    assert set(drawn([], scores)) == {"exact match", "perplexity"}
    missing = {"before": {"exact_match": None}, "after": {"exact_match": None}}
    assert set(drawn(losses, missing)) == {"loss"}
    with pytest.raises(ValueError, match="nothing to draw"):
        drawn([{"step": 1, "seconds": 0.0, "tokens": 1}], missing)


def test_evaluations_stand_at_their_steps_between_before_and_after(drawn):
    rows = [{"step": step, "loss": 3 / step} for step in STEPS]
    rows += [{"step": 4, "eval/loss": 1.5}, {"step": 6, "eval/loss": math.nan}]
    scores = {"before": {"loss": 2.75}, "after": {"loss": 0.5}}
    training, held_out = drawn(rows, scores)["loss"].lines
    assert points(training) == [(step, 3 / step) for step in STEPS]
    assert points(held_out) == [(0, 2.75), (4, 1.5), (7, 0.5)]


def test_steps_without_a_finite_loss_are_marked(drawn):
    rows = [{"step": step, "loss": math.nan if step in (3, 5) else 1.0} for step in STEPS]
    [_, marks] = drawn(rows)["loss"].lines
    assert [step for step, _ in points(marks)] == [3, 5]
    assert marks.get_label() == "not finite (2)"


def test_many_steps_have_a_running_mean(drawn):
    rows = [{"step": step, "loss": 2.0 + (-1) ** step} for step in range(1, 161)]
    pale, smooth = drawn(rows)["loss"].lines
    assert len(points(pale)) == len(points(smooth)) == 160
    middle = [value for _, value in points(smooth)][5:-5]
    assert all(abs(value - 2.0) <= 0.2 + 1e-9 for value in middle)
    assert smooth.get_label() == "training, mean of 5 steps"
