"""Two processes are one run: what they agree on, how they stop, and what ends them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from pairs import Pair, free_port, lines
from tiny import save_tiny_llama

import jlora
from jlora import trainer


def test_what_differs_is_told_to_all_and_who_is_absent(pair, tmp_path):
    both = pair("agreements")
    first, second = both.told()
    assert both.status() == [0, 0], both.errors
    assert first[:-1] == second
    same, differs, day, failed, locked, address, again = second
    assert same == "{'rank': 8}"
    assert differs.startswith(
        "ValueError: settings: the processes differ: rank is 4 in process 1 and 8 in process 0. "
    )
    assert day == "day of 0"
    assert failed == "OSError: process 0: read-only"
    assert locked == "locked"
    assert "gs://bucket/run" in address
    assert "started before" in again
    assert first[-1] == ("TimeoutError: the slow one: waited 2 seconds for process 1 of 2")


def test_a_signal_to_one_stops_both_at_the_same_step_and_one_process_goes_on(pair, tmp_path):
    both = pair("stopping")
    first, second = both.told()
    assert both.status() == [0, 0], both.errors
    assert first == second  # the program under another PYTHONHASHSEED, the best and the state too
    _, number, name, _ = first[1].split()
    assert name == "SIGTERM"
    assert 12 <= int(number) < 100
    run = trainer.Run(tmp_path / "run")
    assert run.steps == [int(number)]
    like = jlora.split({"kernel": np.ones((7, 5), "f")}, _config(), jax.random.key(0))[1]
    import optax

    opt = jlora.optimizer(optax.adam(1e-2)).init(like)
    step, state, notes = run.restore({"lora": like, "opt": opt})
    assert (step, notes) == (int(number), {"at": int(number)})
    assert float(abs(state["lora"]["kernel"].b).sum()) > 0


def _config():
    return jlora.LoraConfig(targets="kernel", rank=2)


def _train(number, port, *more, script="train.py"):
    flags = f"--coordinator 127.0.0.1:{port} --processes 2 --process-id {number}".split()
    return subprocess.Popen(
        [sys.executable, script, *flags, *more],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _lines(each):
    out, errors = each.communicate(timeout=80)
    return out, lines(errors)


def test_the_command_names_the_setting_that_differs_in_both_processes(tmp_path):
    port = free_port()
    common = ("--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "run"))
    both = [_train(at, port, *common, "--rank", str(4 + 3 * at)) for at in (0, 1)]
    for each in both:
        _, errors = _lines(each)
        assert each.returncode == 2
        assert len(errors) == 1
        assert "settings: the processes differ: rank is 7 in process 1 and 4 in" in errors[0]


@pytest.fixture(scope="module", autouse=True, name="died")
def _died(tmp_path_factory):
    """(the folder, two processes of which one dies): the other waits while other tests run."""
    here = tmp_path_factory.mktemp("died")
    port, out, model = free_port(), here / "run", save_tiny_llama(here / "tiny")
    flags = ("--out", str(out), "--model", str(model))
    both = [_train(at, port, *flags, script="tests/hosts/waiting.py") for at in (0, 1)]
    yield out, both
    for each in both:
        each.kill()
        each.communicate()


@pytest.fixture(scope="module", autouse=True, name="dying")
def _dying(tmp_path_factory):
    """(the folder, two processes of which one dies): the other waits while other tests run."""
    here = tmp_path_factory.mktemp("dying")
    both = Pair("dying", here)
    yield here, both
    both.end()


def test_one_that_dies_ends_the_other_within_a_minute(dying):
    here, both = dying
    first, second = both.both
    second.communicate()
    assert second.returncode == -signal.SIGKILL
    died = (here / "died").stat().st_mtime
    first.communicate(timeout=max(1, died + 60 - time.time()))
    assert first.returncode != 0


def test_the_command_tells_in_one_line_that_a_process_died_and_how_to_go_on(died):
    out, both = died
    printed, errors = _lines(both[0])
    assert _lines(both[1]) == ("", [])
    assert [each.returncode for each in both] == [1, 137]
    assert printed == "training\n"
    assert errors == [
        "train.py: process 1 ended or no longer answers, so this one ended too. "
        f"Go on with: python train.py --out {out} --resume"
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"processes": 2}, "coordinator and process_id not given"),
        ({"coordinator": "here", "processes": 2, "process_id": 0}, "expected HOST:PORT"),
        ({"coordinator": "a:1", "processes": 2, "process_id": -1}, "process_id is -1"),
        ({"coordinator": "a:1", "processes": 0, "process_id": 0}, "processes is 0"),
    ],
)
def test_bad_arguments_are_told_before_anything_starts(given, told):
    with pytest.raises(ValueError, match=told):
        trainer.start_processes(**given)


def test_a_coordinator_that_does_not_answer_is_one_error_within_the_limit():
    port = free_port()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="did not answer for 1 seconds"):
        trainer.start_processes(f"127.0.0.1:{port}", processes=2, process_id=1, seconds=1)
    assert time.monotonic() - began < 10


def test_a_port_that_is_taken_is_told_by_process_0():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="can't listen"):
            trainer.start_processes(where, processes=2, process_id=0, seconds=1)
