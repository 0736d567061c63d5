"""What is wrong in one process of train.py ends both at once; each says it, or who it was."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pairs import Pair, free_port, lines
from safetensors.numpy import load_file, save_file
from tiny import save_tiny_llama
from trainings import Trainings, ended

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", name="trainings")
def _trainings(tmp_path_factory):
    made = Trainings(tmp_path_factory.mktemp("failures"))
    yield made
    made.end()


@pytest.fixture(scope="module", autouse=True, name="stopped")
def _stopped(tmp_path_factory):
    """Two processes at a barrier, of which the second one is stopped; most of a minute passes."""
    here = tmp_path_factory.mktemp("stopped")
    flags = f"--coordinator 127.0.0.1:{free_port()} --processes 2 --out {here / 'run'}".split()
    flags += ["--model", str(save_tiny_llama(here / "tiny"))]
    both = [
        subprocess.Popen(
            [sys.executable, "tests/hosts/stopping.py", *flags, "--process-id", str(number)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    yield both
    for each in both:
        if each.poll() is None:
            each.kill()
            each.communicate()


@pytest.fixture(scope="module", autouse=True, name="small")
def _small(trainings):
    """Two processes of which one writes files of 100 bytes: it waits while other tests run."""
    return trainings.pair("--steps", "2", "--out", "small", devices=1, second={"most": 100})


@pytest.fixture(scope="module", autouse=True, name="unwritable")
def _unwritable(tmp_path_factory):
    """Two processes of which one can't write for a while: it waits while other tests run."""
    both = Pair("unwritable", tmp_path_factory.mktemp("unwritable"))
    yield both
    both.end()


def said_at_the_end(errors):
    """The lines but for those of a run's steps."""
    return [line for line in lines(errors) if not line.startswith("step ")]


def test_model_files_of_other_contents_are_refused_before_training(trainings):
    """One tensor of the same shape has other values."""
    other = trainings.here / "other"
    shutil.copytree(trainings.here / "tiny", other / "tiny")
    shutil.copy(trainings.here / "rows.jsonl", other)
    file = other / "tiny" / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[3]
    save_file({**tensors, name: tensors[name] + np.float32(0.01)}, file)
    out = str(trainings.here / "mixed")
    both = ended(*trainings.pair("--steps", "2", "--out", out, second={"here": other}))
    for status, printed, errors in both:
        assert (status, printed) == (2, "")
        [line] = lines(errors)
        assert line.startswith("train.py: the files of tiny: the processes differ: model.saf")


def test_a_folder_that_is_none_is_one_line_in_both(trainings):
    (trainings.here / "file").write_text("")
    both = ended(*trainings.pair("--steps", "2", "--out", "file/run"))
    for status, _, errors in both:
        assert status == 2
        assert lines(errors) == ["train.py: file/run can't be made: Not a directory"]


def test_a_folder_of_another_path_is_told_of(trainings):
    other = trainings.here / "elsewhere"
    other.mkdir()
    both = ended(*trainings.pair("--steps", "2", "--out", "run", second={"here": other}))
    for status, _, errors in both:
        assert status == 2
        [line] = lines(errors)
        assert "the run's folder: the processes differ: it is " in line
        assert "elsewhere/run' in process 1" in line


def test_what_one_alone_cant_write_is_told_by_both_and_later_saves_are_whole(unwritable):
    first, second = unwritable.told()
    assert unwritable.status() == [0, 0], unwritable.errors
    assert second[0].startswith("OSError: ")
    assert second[0].endswith("could not be written: File too large: it needs 1.05 MB")
    assert first[0].startswith("OSError: ")
    assert "could not be written" in first[0]
    assert first[1] == second[1] == "[1, 3]"


def test_one_that_fails_while_both_save_is_named_by_the_other_with_its_reason(small):
    """Files of 100 bytes are too small for arrays; the other one waits in a collective."""
    both = ended(*small)
    assert [status for status, _, _ in both] == [1, 1], both
    [first], [second] = (said_at_the_end(errors) for _, _, errors in both)
    assert second.startswith("train.py: ")
    assert "checkpoints/2 could not be written" in second
    assert "Go on with" in second
    assert first.startswith("train.py: process 1 failed, so this one ended too: ")
    assert "checkpoints/2 could not be written" in first


def test_one_that_is_stopped_ends_the_other_within_a_minute_and_itself_when_it_goes_on(stopped):
    """The last here: its time is over when the others are done."""
    number = int(stopped[1].stdout.readline())
    _, errors = stopped[0].communicate(timeout=70)
    assert stopped[0].returncode == 1
    [line] = lines(errors)
    assert line.startswith("stopping.py: process 1 ended or no longer answers, so this one ended")
    assert stopped[1].poll() is None
    os.kill(number, signal.SIGCONT)
    _, errors = stopped[1].communicate(timeout=60)
    assert stopped[1].returncode == 1
    [line] = lines(errors)
    assert "ended or no longer answers, so this one ended too" in line
