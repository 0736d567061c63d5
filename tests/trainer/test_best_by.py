"""The best adapter and the patience go by the number that was named, or nothing begins."""

import pytest

import train
from jlora import finetune, tasks, trainer
from jlora.finetune import _settle

OWN = """
from jlora import tasks

class Task(tasks.Rows):
    measures = {"points": "higher", "mistakes": "lower"}
    given = iter([0.0, 0.2, 0.6, 0.6, 0.1, 0.5, 0.9])  # before training, and after each step

    def scores(self, model, held_out, *weights):
        points = next(Task.given, 0.6)
        return {"points": points, "mistakes": 1 - points, "exact_match": 0.0,
                "answers": [""] * len(held_out)}

    def same(self, *_):
        return ""
"""


@pytest.mark.parametrize("by", ["points", "mistakes"])
def test_the_best_and_the_patience_go_by_the_score_that_is_named(flags, tmp_path, capsys, by):
    path, out = tmp_path / "own.py", tmp_path / "run"
    path.write_text(OWN)
    asked = [f"--task={path}", f"--best-by={by}", "--eval-every=1", "--eval-answers"]
    assert train.main([*flags, *asked, "--patience=3", f"--out={out}"]) == 0
    rows = trainer.read_metrics(out / "metrics.jsonl")
    assert [row["eval/points"] for row in rows] == [0.2, 0.6, 0.6, 0.1, 0.5]
    losses = [row["eval/loss"] for row in rows]
    assert losses.index(min(losses)) != 1  # by the loss it would be another
    told = capsys.readouterr().out
    assert f"stopped   after 3 measurements without a better {by}" in told
    assert f"best      {by} {0.6 if by == 'points' else 0.4}, after step 2" in told
    run = trainer.Run(out)
    assert run.best_step == 2
    assert run.steps[-1] == 5
    assert train.main([f"--out={out}", "--resume"]) == 0  # it stays where it ended
    assert len(trainer.read_metrics(out / "metrics.jsonl")) == 5
    capsys.readouterr()
    assert train.main([f"--out={out}", "--resume", "--best-by=loss"]) == 2
    assert f"best_by was '{by}', now 'loss'" in capsys.readouterr().err


def settings(*flags):
    return finetune.parse(["--data=rows.jsonl", *flags]).settings


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--best-by=exact_match"],
            "--best-by exact_match is measured during training: give --eval-every and "
            "--eval-answers too",
        ),
        (["--best-by=exact_match", "--eval-every=9"], "during training: give --eval-answers too"),
        (["--best-by=accuracy", "--task=classify"], "during training: give --eval-every too"),
        (
            ["--best-by=exact-match", "--eval-every=9"],
            r"--best-by is 'exact-match' \(did you mean exact_match\?\): expected loss or exact_m",
        ),
        (["--best-by=exact_match", "--task=classify"], "expected loss or accuracy or macro_f1"),
    ],
)
def test_a_score_that_is_not_measured_on_the_way_is_refused_before_anything_is_loaded(flags, said):
    with pytest.raises(ValueError, match=said):
        _settle.require(settings(*flags))


def test_labels_are_scored_at_each_measurement_without_being_asked_for():
    asked = settings("--best-by=macro_f1", "--eval-every=9", "--task=classify", "--patience=2")
    _settle.require(asked)
    best = finetune.best(asked, tasks.Classify)
    assert (best.watch, best.direction, best.patience) == ("macro_f1", "higher", 2)


def test_rows_that_ask_for_nothing_have_no_such_score():
    best = trainer.Best("exact_match", "higher")
    with pytest.raises(ValueError, match=r"--best-by exact_match: .* or one of loss"):
        finetune.check_measured(best, {"loss": 0.5, "exact_match": None, "answers": [""]})
    finetune.check_measured(best, {"loss": 0.5, "exact_match": 0.0})
