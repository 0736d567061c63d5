"""Rows that come once, from standard input: the run's own from then on, or nothing is left."""

import dataclasses
import io
import sys

import pytest

import train
from jlora import data, trainer


def given(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_run_on_standard_input_is_resumed_without_it(tiny, rows, tmp_path, monkeypatch):
    run = trainer.Run(tmp_path / "run")
    options = {"model": str(tiny), "data": "-", "rank": 3, "max_length": 96, "eval_rows": 3}
    given(monkeypatch, rows.read_bytes())
    settings = train.settle(options, run)
    job = train.prepare(settings, run)
    run.begin({"settings": dataclasses.asdict(settings), **job.identity})
    from_file = train.load_rows(dataclasses.replace(settings, data=str(rows)), tmp_path, False)
    assert data.digest(*from_file) == job.identity["data"]

    given(monkeypatch, b"")
    again = train.prepare(train.settle({"resume": True}, run), run, resume=True)
    assert again.identity == job.identity
    with pytest.raises(ValueError, match="standard input is empty"):  # another run in its place
        train.prepare(train.settle({**options, "overwrite": True}, run), run)


def test_a_run_that_does_not_begin_leaves_nothing_and_takes_nothing(
    flags, rows, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    refused = [*flags, f"--out={out}", "--data=-", "--max-length=300"]
    given(monkeypatch, rows.read_bytes())
    assert train.main(refused) == 2
    assert "are more than the 256 positions" in capsys.readouterr().err
    assert not out.exists()

    (out / train.ROWS).mkdir(parents=True)
    mine = out / train.ROWS / "mine.jsonl"
    mine.write_text("mine")
    for more in ([], ["--overwrite"]):
        given(monkeypatch, rows.read_bytes())
        assert train.main([*refused, *more]) == 2
        assert mine.read_text() == "mine"
