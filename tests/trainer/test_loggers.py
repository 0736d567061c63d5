"""Every logger gets every number, a resumed run's steps replace those taken anew, none kills."""

import functools
import json
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jlora import trainer
from jlora.trainer._loggers import _identity


class Kept:
    """A logger of one's own; it fails at the steps named, and on closing where asked."""

    def __init__(self, fails=(), fails_on_closing=False):
        self.fails, self.fails_on_closing = fails, fails_on_closing
        self.rows, self.closed = [], 0

    def write(self, step, values):
        if step in self.fails:
            raise OSError("no space left")
        self.rows.append((step, dict(values)))

    def close(self):
        self.closed += 1
        if self.fails_on_closing:
            raise RuntimeError("nobody answers")


def strictly_read(path):
    """The rows, by a reader that takes JSON as it is defined: no NaN, no infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_resumed_run_has_one_line_for_each_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with trainer.Metrics(path) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1 / step})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in trainer.read_metrics(path)] == [1, 2, 3]
    with trainer.Metrics(path, resume_at=2) as metrics:
        metrics.write(3, {"loss": 0.3})
    assert trainer.read_metrics(path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.3},
    ]
    with trainer.Metrics(path):
        pass
    assert trainer.read_metrics(path) == []


def test_what_is_not_finite_is_kept_as_it_was_in_json_that_anyone_reads(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with trainer.Metrics(path) as metrics:
        metrics.write(1, {"loss": float("nan"), "low": float("-inf"), "count": 7})
    for _ in range(2):  # and once more after it was resumed
        [row] = strictly_read(path)
        assert row == {
            "step": 1,
            "loss": None,
            "low": None,
            "count": 7,
            "not_finite": {"loss": "nan", "low": "-inf"},
            "version": 2,
        }
        [row] = trainer.read_metrics(path)
        assert np.isnan(row.pop("loss"))
        assert row == {"step": 1, "low": -np.inf, "count": 7}
        with trainer.Metrics(path, resume_at=1):
            pass
    path.write_text('{"step": 1, "loss": NaN}\n')  # as earlier versions wrote it
    assert np.isnan(trainer.read_metrics(path)[0]["loss"])
    with trainer.Metrics(path, resume_at=1):
        assert strictly_read(path)[0]["not_finite"] == {"loss": "nan"}


def test_each_line_of_metrics_says_its_version_and_a_newer_one_is_not_guessed_at(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n')  # of version 1
    with trainer.Metrics(path, resume_at=1) as metrics:
        metrics.write(2, {"loss": 0.25})
    assert [row["version"] for row in strictly_read(path)] == [2, 2]
    assert trainer.read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    newer = path.read_text() + '{"step": 3, "loss": {"mean": 0.5}, "version": 3}\n'
    path.write_text(newer)
    for read in (trainer.read_metrics, functools.partial(trainer.Metrics, resume_at=2)):
        with pytest.raises(ValueError, match="written by a newer jlora: it is of version 3"):
            read(path)
    assert path.read_text() == newer


def test_a_service_knows_the_run_again_by_what_any_version_wrote(tmp_path):
    first = _identity.identity(tmp_path, "wandb", resume_at=0)
    assert _identity.identity(tmp_path, "wandb", resume_at=3) == first
    assert _identity.identity(tmp_path, "wandb", resume_at=0) != first
    kept = json.loads((tmp_path / "loggers.json").read_text())
    assert kept.keys() == {"version", "wandb", "sum"}
    (tmp_path / "loggers.json").write_text('{"wandb": "0a1b2c3d"}\n')  # of version 1
    assert _identity.identity(tmp_path, "trackio", resume_at=3)
    assert _identity.identity(tmp_path, "wandb", resume_at=3) == "0a1b2c3d"


def test_numbers_of_any_kind_are_logged_as_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {"a": jnp.float32(0.5), "b": np.int64(3), "c": jnp.ones((1,), jnp.bfloat16), "d": True}
    with trainer.Metrics(path) as metrics:
        metrics.write(1, values)
        for wrong, told in (
            ({"text": "no"}, "text is 'no': expected numbers"),
            ({"many": np.ones(3)}, "many is array"),
            ({"not_finite": 1.0}, "not_finite: expected other names"),
            ({"step": 9}, "step: expected other names"),
            ({"version": 9}, "version: expected other names"),
        ):
            with pytest.raises(ValueError, match=told):
                metrics.write(2, wrong)
    assert trainer.read_metrics(path) == [{"step": 1, "a": 0.5, "b": 3, "c": 1.0, "d": True}]


def test_each_logger_gets_every_number_and_is_closed_whatever_the_others_do(tmp_path):
    first, second = Kept(fails=(2, 3), fails_on_closing=True), Kept()
    told = []
    with trainer.loggers((first, second), tmp_path, say=told.append) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": jnp.float32(step)})
    assert second.rows == [(step, {"loss": float(step)}) for step in (1, 2, 3)]
    assert first.rows == [(1, {"loss": 1.0})]
    assert (first.closed, second.closed) == (1, 1)
    assert told == ["logger Kept failed at step 2, training goes on: OSError: no space left"]
    assert [row["step"] for row in trainer.read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_loggers_are_closed_when_the_training_breaks_off(tmp_path):
    logger = Kept(fails_on_closing=True)

    def training():
        with trainer.loggers((logger,), tmp_path, say=lambda _: None) as log:
            log.write(1, {"loss": 1.0})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training()
    assert logger.closed == 1


def test_a_service_that_does_not_open_leaves_the_others_at_work(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file where its folder should be")
    logger = Kept()
    with trainer.loggers(("tensorboard", logger), tmp_path) as log:
        log.write(1, {"loss": 1.0})
    assert "logger tensorboard failed on opening, training goes on" in capsys.readouterr().err
    assert logger.rows == [(1, {"loss": 1.0})]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("wandb", "trackio"), 'logger wandb: .*pip install "jlora.wandb.".*trackio'),
        (("tensorbord", "x"), "'tensorbord', 'x': expected some of tensorboard, wandb, trackio"),
        (("tensorboard", "tensorboard"), "tensorboard is given twice"),
    ],
)
def test_what_cannot_be_logged_to_is_told_before_any_work(names, told, tmp_path, monkeypatch):
    for package in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ValueError, match=told):
        trainer.check_loggers(names)
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=told), trainer.loggers(names, folder):
        pass
    assert not folder.exists()


def test_the_first_process_alone_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with trainer.loggers(("tensorboard",), tmp_path / "run") as log:
        log.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def events(folder):
    """What TensorBoard shows: {tag: {step: value}}, read from the files as they lie there.

    A file is records of a length, its sum, an event, its sum; an event that starts a session at a
    step takes away what earlier sessions logged from that step on.
    """
    shown: dict = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            [length] = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                for steps in shown.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


def test_tensorboard_shows_what_the_run_logged_and_a_resumed_run_anew(tmp_path):
    with trainer.loggers(("tensorboard",), tmp_path, settings={"rank": 3}) as log:
        log.write(0, {"eval/loss": 9.0})
        for step in (1, 2, 3, 4):
            log.write(step, {"loss": step / 4, "learning_rate": 0.5})
    board = tmp_path / "tensorboard"
    first = {"loss": {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}, "eval/loss": {0: 9.0}}
    assert events(board) == first | {"learning_rate": dict.fromkeys((1, 2, 3, 4), 0.5)}
    with trainer.loggers(("tensorboard",), tmp_path, resume_at=2) as log:
        log.write(3, {"loss": 8.0})
    assert events(board)["loss"] == {1: 0.25, 2: 0.5, 3: 8.0}
    assert events(board)["eval/loss"] == {0: 9.0}
    with trainer.loggers(("tensorboard",), tmp_path) as log:  # afresh
        log.write(1, {"loss": 7.0})
    assert events(board) == {"loss": {1: 7.0}}
