"""wandb and trackio get every number, and a resumed run goes on in the run that was begun."""

import importlib
import json
import math
import sqlite3
import struct

import pytest

from jlora import trainer


def two_runs(name, folder):
    """Four steps, then the same run again from step 2, as after a crash."""
    told = []
    with trainer.loggers((name,), folder, settings={"rank": 3}, say=told.append) as log:
        log.write(0, {"eval/loss": 9.0})
        for step in (1, 2, 3, 4):
            log.write(step, {"loss": step / 4, "grad_norm": math.nan})
    with trainer.loggers((name,), folder, resume_at=2, say=told.append) as log:
        for step in (3, 4, 5):
            log.write(step, {"loss": step / 4, "grad_norm": 0.5})
    assert told == []


WANTED = [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (3, 0.75), (4, 1.0), (5, 1.25)]


def test_wandb_keeps_every_step_of_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    two_runs("wandb", folder)
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1  # of one run
    rows = [row for path in files for row in history(path)]
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == WANTED
    assert next(row for row in rows if "eval/loss" in row)["step"] == 0
    assert math.isnan(next(row for row in rows if row["step"] == 2)["grad_norm"])


def history(path):
    """The rows that were logged, from the file that a later `wandb sync` reads.

    It has LevelDB's log format: blocks of 32 KiB, the first of which begins with 7 bytes of its
    own, and in them pieces of records: a sum, a length, whether more follows, the bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record, rows = path.read_bytes(), 7, b"", []
    while at < len(content):
        if (left := -at % 2**15) < 7:  # too few bytes for a piece: the next block begins
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found, record = Record.FromString(record), b""
            if found.WhichOneof("record_type") == "history":
                items = found.history.item
                rows.append({(i.key or i.nested_key[0]): json.loads(i.value_json) for i in items})
    return rows


def test_trackio_keeps_every_step_of_a_resumed_run(tmp_path, monkeypatch):
    import trackio
    from trackio import sqlite_storage, utils

    for module in (trackio, sqlite_storage, utils):  # read once, when it is imported
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "kept", raising=False)
    monkeypatch.setenv("TRACKIO_PROJECT", "tried")
    two_runs("trackio", tmp_path / "one" / "run")
    two_runs("trackio", tmp_path / "two" / "run")  # the same name in another folder
    with sqlite3.connect(tmp_path / "kept" / "tried.db") as base:
        runs: dict = {}
        for run, step, content in base.execute(
            "select run_id, step, metrics from metrics order by id"
        ):
            runs.setdefault(run, []).append((step, json.loads(content)))
        names = dict(base.execute("select run_id, run_name from metrics"))
    assert len(runs) == len(set(names.values())) == 2
    assert all(name.startswith("run-") for name in names.values())
    for rows in runs.values():
        assert [(step, row["loss"]) for step, row in rows if "loss" in row] == WANTED
        assert rows[1][1]["grad_norm"] == "NaN"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_that_cannot_be_opened_is_one_line(name, tmp_path, monkeypatch):
    def refuse(**_):
        raise ConnectionError("no network")

    monkeypatch.setattr(importlib.import_module(name), "init", refuse)
    told = []
    with trainer.loggers((name,), tmp_path, say=told.append) as log:
        log.write(1, {"loss": 1.0})
    assert told == [
        f"logger {name} failed on opening, training goes on: ConnectionError: no network"
    ]
    assert trainer.read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
