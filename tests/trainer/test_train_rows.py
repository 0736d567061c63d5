"""A run on rows of other kinds: what was fixed at its beginning holds to its end."""

import dataclasses
import datetime
import json

import pytest

import train
from jlora import checkpoint, models, trainer
from jlora.__main__ import main as jlora_main

DATED = (
    "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@pytest.fixture
def dated(tiny, rows, tmp_path):
    """A run with a template that prints the date, begun some days ago: its folder and its job."""
    file = tmp_path / "chat.jinja"
    file.write_text(DATED)
    given = {"model": str(tiny), "data": str(rows), "rank": 3, "max_length": 96, "eval_rows": 3}
    template = train.text_of_file(str(file))
    file.unlink()
    run = trainer.Run(tmp_path / "run")
    settings = train.settle({**given, "template": template, "date": "2025-03-04"}, run)
    job = train.prepare(settings, run)
    run.begin({"settings": dataclasses.asdict(settings), **job.identity})
    return run, job


def test_date_and_template_are_the_runs_own_from_then_on(dated):
    run, job = dated
    again = train.prepare(train.settle({"resume": True}, run), run)
    for each in (job, again):
        tokens = each.model.tokenizer.decode(each.batches(0)["tokens"][0])
        assert tokens.startswith("2025-03-04")
    assert again.identity == job.identity
    with pytest.raises(ValueError, match="date was '2025-03-04', now '2025-03-05'"):
        train.settle({"resume": True, "date": "2025-03-05"}, run)
    with pytest.raises(ValueError, match=r"template was .\{\{ strftime_now") as caught:
        train.settle({"resume": True, "template": "x" * 9999}, run)
    assert len(str(caught.value)) < 600


def test_what_is_generated_later_has_the_runs_date_and_template(dated, monkeypatch, capsys):
    run, job = dated
    metadata = {"model": job.settings.model, "settings": dataclasses.asdict(job.settings)}
    checkpoint.save(run.directory / "adapter", job.lora, job.config, metadata=metadata)
    asked = []

    def listening(model, rows, *_, **__):
        asked.append(model.tokenizer.render(rows[0], add_generation_prompt=True))
        return ["yes"]

    monkeypatch.setattr(models, "answer", listening)
    adapter = f"--adapter={run.directory / 'adapter'}"
    assert jlora_main(["generate", adapter, "--prompt=1?", "--no-stream"]) == 0
    assert asked == ["2025-03-04<|im_start|>1?<|im_end|><|im_start|>"]
    assert capsys.readouterr().out.endswith("yes\n")


def test_a_run_without_a_date_is_of_the_day_on_which_it_began(tmp_path):
    settings = train.settle({}, trainer.Run(tmp_path / "run"))
    assert settings.date == datetime.date.today().isoformat()


def test_rows_of_plain_text_are_measured_by_their_loss_alone(tiny, tmp_path, capsys):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"story": f"{n} and {n + 1}"}) + "\n" for n in range(30)))
    settings = train.Settings(
        model=str(tiny), data=str(data), columns={"text": "story"}, rank=3, max_length=96
    )
    job = train.prepare(settings, trainer.Run(tmp_path / "run"))
    scores = train.evaluate(job, job.lora)
    assert scores["exact_match"] is None
    assert 2 < scores["loss"] < 12
    assert scores["answers"] == [""] * 3
    assert train.monitor.compared(job.held_out, {"before": scores}).splitlines()[-1].endswith(" -")
