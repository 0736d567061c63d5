"""A run on rows of other kinds: what was fixed at its beginning holds to its end."""

import datetime
import json
import shutil

import pytest

import train
from jlora import data, models, trainer
from jlora.__main__ import main as jlora_main

DATED = (
    "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@pytest.fixture
def dated(flags, tmp_path):
    """The folder of a run with a template that prints the date, begun some days ago."""
    file, out = tmp_path / "chat.jinja", tmp_path / "run"
    file.write_text(DATED)
    of_old = [f"--template={file}", "--date=2025-03-04", "--steps=2", "--max-new-tokens=1"]
    assert train.main([*flags, *of_old, f"--out={out}"]) == 0
    file.unlink()
    return out


def test_date_and_template_are_the_runs_own_from_then_on(dated, capsys, monkeypatch):
    before = trainer.read_metrics(dated / "metrics.jsonl")
    shutil.rmtree(dated / "checkpoints" / "2")
    seen = []
    whole = data.Batches.__call__
    monkeypatch.setattr(
        data.Batches, "__call__", lambda b, n: seen.append(b.examples[0].tokens) or whole(b, n)
    )
    assert train.main([f"--out={dated}", "--resume"]) == 0
    tokenizer = models.load(trainer.Run(dated).settings["settings"]["model"]).tokenizer
    assert {tokenizer.decode(tokens)[:10] for tokens in seen} == {"2025-03-04"}
    again = trainer.read_metrics(dated / "metrics.jsonl")
    assert [row["loss"] for row in again] == [row["loss"] for row in before]

    capsys.readouterr()
    assert train.main([f"--out={dated}", "--resume", "--date=2025-03-05"]) == 2
    assert "date was '2025-03-04', now '2025-03-05'" in capsys.readouterr().err
    assert train.main([f"--out={dated}", "--resume", f"--template={'{{x}}' * 999}"]) == 2
    told = capsys.readouterr().err
    assert 'template was "{{ strftime_now' in told
    assert len(told) < 600


def test_what_is_generated_later_has_the_runs_date_and_template(dated, monkeypatch, capsys):
    asked = []

    def listening(model, rows, *_, **__):
        asked.append(model.tokenizer.render(rows[0], add_generation_prompt=True))
        return ["yes"]

    monkeypatch.setattr(models, "answer", listening)
    capsys.readouterr()
    adapter = f"--adapter={dated / 'adapter'}"
    assert jlora_main(["generate", adapter, "--prompt=1?", "--no-stream"]) == 0
    assert asked == ["2025-03-04<|im_start|>1?<|im_end|><|im_start|>"]
    assert capsys.readouterr().out.endswith("yes\n")


def test_a_run_without_a_date_is_of_the_day_on_which_it_began(finished):
    begun = trainer.Run(finished).settings["settings"]["date"]
    assert begun == datetime.date.fromtimestamp((finished / "run.json").stat().st_mtime).isoformat()


def test_rows_of_plain_text_are_measured_by_their_loss_alone(flags, tmp_path, capsys):
    rows, out = tmp_path / "texts.jsonl", tmp_path / "run"
    rows.write_text("".join(json.dumps({"story": f"{n} and {n + 1}"}) + "\n" for n in range(30)))
    of_texts = [f"--data={rows}", "--columns=text=story", "--steps=2", f"--out={out}"]
    assert train.main([*flags, *of_texts]) == 0
    scores = json.loads((out / "results.json").read_text())["before"]
    assert scores["exact_match"] is None
    assert 2 < scores["loss"] < 12
    assert scores["answers"] == [""] * 3
    last = capsys.readouterr().out.partition("held-out rows  ")[2].splitlines()[2]
    assert last.endswith(" -")
