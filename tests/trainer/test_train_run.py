import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_runs import signalled_after

import train
from jlora import checkpoint, data, finetune, trainer

ROOT = Path(train.__file__).parent


def losses(out):
    return [row["loss"] for row in trainer.read_metrics(out / "metrics.jsonl")]


def test_a_run_leaves_metrics_scores_a_figure_and_an_adapter_that_works(finished):
    printed = (finished / "printed.txt").read_text()
    steps = [row["step"] for row in trainer.read_metrics(finished / "metrics.jsonl")]
    assert steps == [*range(1, 9)]
    assert all(math.isfinite(loss) for loss in losses(finished))
    for row in trainer.read_metrics(finished / "metrics.jsonl"):
        assert 0 < row["tokens_trained"] < row["tokens"] < row["tokens_processed"]
    scores = json.loads((finished / "results.json").read_text())
    assert scores["after"]["loss"] < scores["before"]["loss"]
    assert len(scores["after"]["answers"]) == 3
    assert (finished / "training.png").read_bytes().startswith(b"\x89PNG")
    lora, config = checkpoint.restore(finished / "adapter")
    assert (len(lora), config.rank) == (7, 3)
    assert not (finished / "start").exists()  # it is drawn again from the seed
    assert "it gives the same answer to 3 of 3 rows" in printed
    assert f"python -m jlora generate --adapter {finished / 'adapter'}" in printed


def test_a_stopped_run_goes_on_with_the_losses_of_one_that_was_not(
    flags, finished, tmp_path, capsys
):
    out = tmp_path / "run"
    with signalled_after(4, signal.SIGINT):  # between two checkpoints
        assert train.main([*flags, f"--out={out}"]) == 128 + signal.SIGINT
    told = capsys.readouterr().err
    assert "stopped by SIGINT after step 4, which is saved" in told
    assert f"python train.py --out {out} --resume" in told
    assert losses(out) == losses(finished)[:4]

    assert train.main([f"--out={out}", "--resume"]) == 0
    assert losses(out) == losses(finished)
    results = [trainer.Run(folder).recorded("results") for folder in (out, finished)]
    assert results[0] == results[1]


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints" / "8")  # as if the power had failed at step 8
    assert trainer.Run(out).latest_step == 6
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert losses(out) == losses(finished)


def test_sigterm_saves_and_leaves_cleanly(flags, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "train.py", *flags, f"--out={out}", "--steps=100000"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while len(trainer.read_metrics(out / "metrics.jsonl")) < 2 and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        _, told = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step" in told
    assert "Traceback" not in told
    assert trainer.Run(out).latest_step == len(losses(out)) >= 2


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the batches of these steps, counted from 1, ones whose loss is no number."""

    def poison(*steps):
        whole = data.Batches.__call__

        def batch(batches, number):
            made = whole(batches, number)
            return made | {"weights": made["weights"] * np.nan} if number + 1 in steps else made

        monkeypatch.setattr(data.Batches, "__call__", batch)

    return poison


def test_a_loss_that_is_no_number_stops_with_the_last_good_state(
    flags, finished, tmp_path, monkeypatch, capsys, poisoned
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        whole = data.Batches.__call__
        poisoned(5)
        assert train.main([*flags, f"--out={out}"]) == 1
        patch.setattr(data.Batches, "__call__", whole)
        told = capsys.readouterr().err
        assert "at step 5 the loss is nan" in told
        assert f"{out}/not-finite-5.json holds the rows" in told
        assert "The checkpoint of step 4" in told
        assert "Try a --learning-rate below 0.003" in told
        written = json.loads((out / "not-finite-5.json").read_text())
        assert len(written["rows"]) == 4
        assert all("?" in row for row in written["rows"])
        assert train.main([f"--out={out}", "--resume"]) == 0
    assert losses(out) == losses(finished)


def test_a_batch_whose_loss_is_no_number_is_skipped_when_asked(flags, tmp_path, capsys, poisoned):
    out = tmp_path / "run"
    poisoned(3, 5)
    assert train.main([*flags, f"--out={out}", "--on-nonfinite=skip"]) == 0
    seen = losses(out)
    assert [step for step, loss in enumerate(seen, 1) if math.isnan(loss)] == [3, 5]
    assert len(seen) == 8
    assert {path.name for path in out.glob("not-finite-*")} == {
        "not-finite-3.json",
        "not-finite-5.json",
    }
    assert "step 3: the loss is nan" in capsys.readouterr().err


def test_a_run_of_such_batches_ends_though_they_are_skipped(flags, tmp_path, capsys, poisoned):
    out = tmp_path / "run"
    poisoned(*range(3, 99))
    assert train.main([*flags, "--steps=20", f"--out={out}", "--on-nonfinite=skip"]) == 1
    told = capsys.readouterr().err
    assert "at step 12 the loss is nan" in told
    assert "for 10 steps in a row" in told
    assert "The checkpoint of step" in told


def test_a_second_process_on_the_same_folder_is_told_who_holds_it(flags, tmp_path, capsys):
    out = tmp_path / "run"
    with trainer.Run(out).locked():
        assert train.main([*flags, f"--out={out}"]) == 2
        assert f"{out} is being written by process {os.getpid()} on" in capsys.readouterr().err
    assert not out.exists()


def test_an_interrupted_preparation_leaves_one_line_and_no_folder(
    flags, tmp_path, capsys, monkeypatch
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "start", interrupted)
    out = tmp_path / "run"
    assert train.main([*flags, f"--out={out}"]) == 130
    assert capsys.readouterr().err == "train.py: interrupted\n"
    assert not out.exists()


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    array = max((out / "checkpoints" / "8").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(array.read_bytes())
    content[len(content) // 2] ^= 1
    array.write_bytes(content)
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert f"the checkpoint of step 8 in {out} is damaged" in capsys.readouterr().out
    assert losses(out) == losses(finished)


def test_overwrite_begins_afresh(flags, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    assert train.main([*flags, f"--out={out}", "--steps=2", "--seed=1", "--overwrite"]) == 0
    assert len(losses(out)) == 2
    assert losses(out) != losses(finished)[:2]
    assert trainer.Run(out).latest_step == 2
