"""Rows that come once, from standard input: the run's own from then on, or nothing is left."""

import io
import sys

import train
from jlora import trainer


def given(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_run_on_standard_input_is_resumed_without_it(
    flags, finished, rows, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    given(monkeypatch, rows.read_bytes())
    assert train.main([*flags, f"--out={out}", "--data=-", "--steps=3"]) == 0
    begun, of_file = (trainer.Run(folder).settings for folder in (out, finished))
    assert begun["data"] == of_file["data"]  # the digest of the rows

    given(monkeypatch, b"")
    assert train.main([f"--out={out}", "--resume"]) == 0
    assert trainer.Run(out).settings == begun
    capsys.readouterr()
    assert train.main([*flags, f"--out={out}", "--data=-", "--overwrite"]) == 2  # another run
    assert "standard input is empty" in capsys.readouterr().err


def test_a_run_that_does_not_begin_leaves_nothing_and_takes_nothing(
    flags, rows, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    refused = [*flags, f"--out={out}", "--data=-", "--max-length=300"]
    given(monkeypatch, rows.read_bytes())
    assert train.main(refused) == 2
    assert "are more than the 256 positions" in capsys.readouterr().err
    assert not out.exists()

    (out / "rows").mkdir(parents=True)
    mine = out / "rows" / "mine.jsonl"
    mine.write_text("mine")
    for more in ([], ["--overwrite"]):
        given(monkeypatch, rows.read_bytes())
        assert train.main([*refused, *more]) == 2
        assert mine.read_text() == "mine"
