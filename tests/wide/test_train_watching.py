"""A run measures on the way, keeps its best adapter, ends early, goes on, starts from another."""

import io
import itertools
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
from small_runs import signalled_after

import train
from jlora import checkpoint, data, trainer


def losses(out):
    return [row["loss"] for row in trainer.read_metrics(out / "metrics.jsonl")]


def measured(out):
    rows = trainer.read_metrics(out / "metrics.jsonl")
    return {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}


def arrays(folder):
    lora, _ = checkpoint.restore(folder)
    return {
        f"{path}/{name}": np.asarray(getattr(n, name)) for path, n in lora.items() for name in "ab"
    }


@pytest.fixture(scope="module")
def watched(flags, tmp_path_factory):
    """A run whose loss on held-out rows first falls and then rises."""
    out = tmp_path_factory.mktemp("runs") / "watched"
    rising = ["--learning-rate=0.3", "--schedule=constant", "--clip=0"]
    assert train.main([*flags, *rising, "--eval-every=2", "--eval-answers", f"--out={out}"]) == 0
    return out


def test_measuring_on_the_way_changes_nothing(flags, finished, tmp_path):
    assert train.main([*flags, "--eval-every=3", f"--out={tmp_path / 'run'}"]) == 0
    assert losses(tmp_path / "run") == losses(finished)
    assert list(measured(tmp_path / "run")) == [3, 6, 8]  # the last step too


def test_adapter_is_the_best_and_last_the_last(watched):
    seen = measured(watched)
    best = min(seen, key=seen.get)
    assert best < 8
    told = {name: checkpoint.describe(watched / name)["metadata"] for name in ("adapter", "last")}
    assert {name: each["step"] for name, each in told.items()} == {"adapter": best, "last": 8}
    results = json.loads((watched / "results.json").read_text())
    assert results["after"]["loss"] == pytest.approx(seen[best], rel=1e-6)
    assert any(
        (a != arrays(watched / "last")[n]).any() for n, a in arrays(watched / "adapter").items()
    )
    rows = trainer.read_metrics(watched / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/exact_match" in row] == [2, 4, 6, 8]


def test_patience_ends_a_run_that_gets_no_better(watched, flags, tmp_path):
    out = tmp_path / "run"
    rising = [
        "--learning-rate=0.3",
        "--schedule=constant",
        "--clip=0",
        "--eval-every=1",
        "--steps=30",
    ]
    assert train.main([*flags, *rising, "--patience=2", f"--out={out}"]) == 0
    seen = measured(out)
    best = min(seen, key=seen.get)
    assert max(seen) == best + 2 < 30
    assert checkpoint.describe(out / "adapter")["metadata"]["step"] == best


def test_patience_that_is_never_used_up_is_refused(flags, tmp_path, capsys):
    assert train.main([*flags, "--eval-every=4", "--patience=2", f"--out={tmp_path / 'run'}"]) == 2
    assert "is never used up in 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_finished_run_goes_on_for_more_steps(flags, finished, tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    constant = ["--schedule=constant", "--warmup=0"]
    assert train.main([*flags, *constant, "--steps=5", f"--out={short}"]) == 0
    assert train.main([f"--out={short}", "--resume", "--steps=8"]) == 0
    assert train.main([*flags, *constant, "--steps=8", f"--out={long}"]) == 0
    assert losses(short) == losses(long)
    again, once = arrays(short / "adapter"), arrays(long / "adapter")
    assert all((again[name] == once[name]).all() for name in once)


@pytest.mark.parametrize("format", ["jlora", "peft"])
def test_a_run_starts_from_a_saved_adapter(flags, finished, tmp_path, format, capsys):
    folder, out = tmp_path / "mine", tmp_path / "run"
    if format == "peft":
        from jlora.__main__ import main

        asked = ["export", f"--adapter={finished / 'adapter'}", f"--out={folder}"]
        assert main(asked) == 0
    else:
        shutil.copytree(finished / "adapter", folder)
    of_fresh = [flag for flag in flags if "--rank" not in flag]
    start = [f"--adapter={folder}", "--steps=3", "--checkpoint-every=1", f"--out={out}"]
    assert train.main([*of_fresh, *start]) == 0
    before = json.loads((out / "results.json").read_text())["before"]
    after = json.loads((finished / "results.json").read_text())["after"]
    assert before["loss"] == pytest.approx(after["loss"], rel=1e-5)
    assert checkpoint.restore(out / "adapter")[1].rank == 3

    shutil.rmtree(folder)  # the run has its own copy
    once = losses(out)
    shutil.rmtree(out / "checkpoints" / "3")
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert losses(out) == once
    capsys.readouterr()
    assert train.main([*flags, *start, "--overwrite"]) == 2
    assert "--adapter has its own rank: leave --rank out" in capsys.readouterr().err


def test_epochs_are_passes_over_the_rows(flags, tmp_path):
    of_steps = [flag for flag in flags if "--steps" not in flag]
    out = tmp_path / "run"
    assert train.main([*of_steps, "--epochs=1.5", f"--out={out}"]) == 0
    begun = trainer.Run(out).settings["settings"]
    rows = data.read_rows(begun["data"][0])
    per_epoch = -(-(len(rows) - 3) // begun["batch_size"])
    assert len(losses(out)) == -(-per_epoch * 3 // 2)


@pytest.mark.parametrize("stopped", [10, 14])
def test_a_run_stopped_at_the_border_of_epochs_or_behind_it_sees_every_row_once(
    flags, tmp_path, monkeypatch, stopped
):
    seen = {}
    whole = data.Batches.__call__

    def noted(batches, number):
        if batches.per_epoch == 10:  # those that train: 37 rows, 4 at a time
            seen.setdefault(folder, {})[number] = tuple(map(int, batches.rows(number)))
        return whole(batches, number)

    monkeypatch.setattr(data.Batches, "__call__", noted)
    folder, constant = "once", [*flags, "--steps=20"]
    assert train.main([*constant, f"--out={tmp_path / folder}"]) == 0
    folder = "twice"
    with signalled_after(stopped, signal.SIGTERM):
        assert train.main([*constant, f"--out={tmp_path / folder}"]) == 128 + signal.SIGTERM
    assert train.main([f"--out={tmp_path / folder}", "--resume"]) == 0
    assert seen["once"] == seen["twice"]
    epochs = [[row for at in range(10) for row in seen["once"][e + at]] for e in (0, 10)]
    assert [sorted(rows) for rows in epochs] == [[*range(37)]] * 2
    assert epochs[0] != epochs[1]
    assert losses(tmp_path / "once") == losses(tmp_path / "twice")


@pytest.mark.parametrize(("at", "saved"), [(2, 3), (4, 8)])  # on the way, and behind the last step
def test_a_signal_in_a_measurement_stops_behind_it_and_nothing_is_lost(
    flags, finished, tmp_path, capsys, monkeypatch, at, saved
):
    count, whole, out = itertools.count(1), trainer.mean_loss, tmp_path / "run"

    def signalled(*args):
        if next(count) == at:  # the first is before training
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args)

    monkeypatch.setattr(trainer, "mean_loss", signalled)
    every = [*flags, "--eval-every=3"]  # after steps 3, 6 and 8
    assert train.main([*every, f"--out={out}"]) == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM after step {saved}, which is saved" in capsys.readouterr().err
    assert trainer.Run(out).latest_step == saved
    assert list(measured(out)) == [3, 6, 8][: at - 1]
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert losses(out) == losses(finished)
    assert list(measured(out)) == [3, 6, 8]


@pytest.mark.parametrize("at", [1, 2])  # before training, and after it
def test_a_signal_in_the_first_or_the_last_measurement_is_one_line_and_nothing_is_lost(
    flags, finished, tmp_path, capsys, monkeypatch, at
):
    count, whole, out = itertools.count(1), trainer.mean_loss, tmp_path / "run"

    def signalled(*args):
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args)

    monkeypatch.setattr(trainer, "mean_loss", signalled)
    assert train.main([*flags, f"--out={out}"]) == 128 + signal.SIGTERM
    *_, line = capsys.readouterr().err.splitlines()
    how = f"Go on with: python train.py --out {out} --resume"
    assert line == f"train.py: stopped by SIGTERM. {how}"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert losses(out) == losses(finished)
    results = [trainer.Run(folder).recorded("results") for folder in (out, finished)]
    assert results[0] == results[1]


def test_rows_of_another_file_are_measured_on(flags, rows, tmp_path):
    other, out = tmp_path / "other.jsonl", tmp_path / "run"
    other.write_text('{"prompt": "1?", "completion": "odd"}\n' * 2)
    assert train.main([*flags, f"--eval-data={other}", "--steps=2", f"--out={out}"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results["after"]["answers"]) == 2


def test_what_was_given_anew_holds_for_the_next_time_too(flags, tmp_path):
    out = tmp_path / "run"
    constant = ["--schedule=constant", "--warmup=0", "--checkpoint-every=1", "--keep=3"]
    assert train.main([*flags, *constant, "--steps=2", f"--out={out}"]) == 0
    with signalled_after(4, signal.SIGTERM):
        assert train.main([f"--out={out}", "--resume", "--steps=6"]) == 128 + signal.SIGTERM
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert len(losses(out)) == 6
    assert trainer.Run(out).steps == [4, 5, 6]  # so many are kept as the run was begun with


def test_a_run_that_ended_early_stays_where_it_ended(flags, tmp_path, capsys):
    out = tmp_path / "run"
    standing = ["--learning-rate=0", "--eval-every=1", "--patience=2", f"--out={out}"]
    assert train.main([*flags, *standing]) == 0
    assert "stopped   after 2 measurements" in capsys.readouterr().out
    assert len(losses(out)) == 3
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert len(losses(out)) == 3
    assert train.main([f"--out={out}", "--resume", "--patience=4"]) == 0
    assert len(losses(out)) == 5


def test_a_best_checkpoint_that_is_lost_is_no_other(watched, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(watched, out)
    best = checkpoint.describe(watched / "adapter")["metadata"]["step"]
    next((out / "checkpoints" / str(best)).rglob("d/*")).write_bytes(b"")
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert f"the checkpoint of step {best} is lost" in capsys.readouterr().out
    assert checkpoint.describe(out / "adapter")["metadata"]["step"] == 8
    kept, last = arrays(out / "adapter"), arrays(watched / "last")
    assert all((kept[name] == last[name]).all() for name in kept)
    assert train.main([f"--out={out}", "--resume"]) == 0


def test_a_run_that_replaces_another_leaves_nothing_of_it_and_takes_nothing_before(
    flags, finished, rows, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    given = lambda: io.TextIOWrapper(io.BytesIO(rows.read_bytes()))  # noqa: E731
    monkeypatch.setattr(sys, "stdin", given())
    once = [*flags, f"--out={out}", "--data=-", "--steps=2"]
    start = [f"--adapter={finished / 'adapter'}", "--save-as=peft"]
    assert train.main([*(f for f in once if "--rank" not in f), *start]) == 0
    assert (out / "start").exists()
    assert (out / "peft").exists()
    monkeypatch.setattr(sys, "stdin", given())
    assert train.main([*once, "--overwrite", "--model=/nowhere"]) == 2  # nothing was begun
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert train.main([*flags, f"--out={out}", "--steps=2", "--overwrite"]) == 0
    assert not any((out / name).exists() for name in ("start", "peft", "rows-2"))
    capsys.readouterr()


def test_flags_that_a_task_does_not_read_are_errors(flags, tmp_path, capsys):
    out = f"--out={tmp_path / 'run'}"
    plain = [flag for flag in flags if not flag.startswith("--data")]
    assert train.main([*plain, "--eval-data=x.jsonl", out]) == 2
    assert "--task home-assistant does not read --eval-data" in capsys.readouterr().err
    assert train.main([*flags, "--task=classify", "--pack", "--train-on=last", out]) == 2
    told = capsys.readouterr().err
    assert "classify does not read --pack" in told
    assert "classify does not read --train-on" in told
    assert train.main([*plain, "--task=rows", out]) == 2
    assert "--task rows reads rows: give --data" in capsys.readouterr().err


def test_a_dry_run_from_a_saved_adapter_has_its_shapes(flags, finished, capsys):
    plain = [flag for flag in flags if "--rank" not in flag]
    assert train.main([*plain, f"--adapter={finished / 'adapter'}", "--dry-run"]) == 0
    assert "rank 3" in capsys.readouterr().out
