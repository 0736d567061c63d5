"""Two processes are one run: what they agree on, how they stop, and what ends them."""

import socket
import time

import jax
import numpy as np
import pytest

import jlora
from jlora import trainer


def test_what_differs_is_told_to_all_and_who_is_absent(pair, tmp_path):
    both = pair("agreements")
    first, second = both.told()
    assert both.status() == [0, 0], (first, second)
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
    assert both.status() == [0, 0], (first, second)
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


def test_one_that_dies_ends_the_other_within_a_minute(pair):
    both = pair("dying")
    began = time.monotonic()
    both.told(timeout=80)
    assert time.monotonic() - began < 70
    assert both.status()[1] == -9
    assert both.status()[0] != 0


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
