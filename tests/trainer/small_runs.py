"""Fixtures of runs of a few seconds: a tiny model, rows, flags, and the folder of a whole run."""

import contextlib
import io
import json
import os
from unittest import mock

import pytest
from tiny import save_tiny_llama

import train
from jlora import trainer


@contextlib.contextmanager
def signalled_after(step, signal):
    """The process gets the signal once the metrics of this step are written."""
    write = trainer.Metrics.write

    def written(metrics, number, values):
        write(metrics, number, values)
        if number == step:
            os.kill(os.getpid(), signal)

    with mock.patch.object(trainer.Metrics, "write", written):
        yield


@pytest.fixture(scope="session")
def make_llama():
    return save_tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """40 questions and answers that a tiny model can learn to answer."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [{"prompt": f"{n}?", "completion": "even" if n % 2 == 0 else "odd"} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def flags(tiny, rows):
    """A run of a few seconds on a tiny model, but for --out."""
    options = {
        "model": tiny,
        "data": rows,
        "steps": 8,
        "batch-size": 4,
        "rank": 3,
        "max-length": 96,
        "eval-rows": 3,
        "max-new-tokens": 8,
        "checkpoint-every": 3,
    }
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture(scope="session")
def finished(flags, tmp_path_factory):
    """The folder of a run that nothing disturbed, with what it printed in printed.txt."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train.main([*flags, f"--out={out}"]) == 0
    (out / "printed.txt").write_text(printed.getvalue())
    return out
