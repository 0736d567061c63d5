"""Flags, files of settings and `Settings` say the same; what can't be is one line."""

import dataclasses
import json
import tomllib

import pytest

import jlora
from jlora import finetune, trainer
from jlora.finetune import _settings

GIVEN = [
    "--data=a.jsonl=2",
    "b.csv",
    "--steps=30",
    "--rank=4",
    "--layers=0-2,5",
    '--rank-pattern={"q_proj": 2}',
    "--columns=prompt=question",
    "--freeze-a",
    "--init=pissa",
]


def test_a_file_of_settings_repeats_the_flags(tmp_path):
    settings = finetune.parse(GIVEN).settings
    finetune.write_settings(tmp_path / "run.toml", settings)
    again = finetune.parse(["--config", str(tmp_path / "run.toml")]).settings
    assert again == settings
    assert again.lora.layers == (0, 1, 2, 5)
    assert again.sources == (("a.jsonl", 2.0), ("b.csv", 1.0))
    as_json = tmp_path / "run.json"
    as_json.write_text(json.dumps(tomllib.loads((tmp_path / "run.toml").read_text())))
    assert finetune.parse(["--config", str(as_json)]).settings == settings


def test_what_is_written_is_read_by_version_and_is_json():
    settings = finetune.parse(GIVEN).settings
    flat = json.loads(json.dumps(settings.flat()))
    assert finetune.Settings.from_flat(flat) == settings
    with pytest.raises(ValueError, match="warp: no settings of this version"):
        finetune.Settings.from_flat({**flat, "warp": 9})


def test_flags_win_over_the_file_also_to_switch_off(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('steps = 30\nfreeze-a = true\nrank = 4\ndata = ["a.jsonl"]\n')
    settings = finetune.parse(["--no-freeze-a", "--config", str(path), "--rank", "5"]).settings
    assert (settings.steps, settings.freeze_a, settings.lora.rank) == (30, False, 5)
    assert settings.data == ("a.jsonl",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("stps = 3\nlayrs = [1]", "layrs is no setting: did you mean layers?; stps is no setting"),
        ('batch_size = "many"', "mine.toml: Error parsing --batch-size: invalid literal"),
        ("steps = ", "mine.toml can't be read: "),
        ('optimizer = "adm"', "mine.toml: invalid choice 'adm' for argument '--optimizer'"),
    ],
)
def test_a_file_that_can_not_be_is_one_line(tmp_path, content, said):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"mine\.toml") as caught:
        finetune.parse(["--config", str(path)])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rnk=3"], "Unrecognized options: --rnk=3. Did you mean --rank?"),
        (["--steps=many"], "'many': expected a whole number"),
        (["--layers=x", "--date=today"], "--date: 'today': expected a date such as 2026-11-27; "),
        (["--layers=x", "--date=today"], "--layers: 'x': expected whole numbers such as 0-2,5"),
        (["--template=/no/" + "long" * 40], f"/no/{'long' * 40} can't be read"),
        (["--rank=0", "--alpha=-1"], "rank is 0: expected a whole number of at least 1; alpha is"),
    ],
)
def test_a_flag_that_can_not_be_is_one_line(flags, said):
    with pytest.raises(ValueError, match=r"\w") as caught:
        finetune.parse(flags)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_that_can_not_be_is_said_at_once():
    problems = list(
        finetune.parse(
            [
                "--learning-rate=1e30",
                "--clip=-1",
                "--eval-rows=0",
                "--batch-size=6",
                "--accumulate=4",
                "--patience=2",
                "--steps=3",
                "--epochs=1",
                "--eval-data=x",
                "--eval-split=0.1",
                "--seed=99999999999",
                "--init=magic",
            ]
        ).settings.problems()
    )
    for said in (
        "--learning-rate is 1e+30: expected at least 0 and at most 100",
        "--clip is -1.0: expected at least 0",
        "--eval-rows is 0: expected at least 1",
        "--seed is 99999999999: expected",
        "--accumulate 4 does not divide --batch-size 6",
        "--patience counts measurements during training: give --eval-every too",
        "--steps and --epochs exclude each other",
        "--eval-data and --eval-split exclude each other",
        "init is 'magic'",
    ):
        assert sum(said in problem for problem in problems) == 1, said
    assert len(problems) == 9
    assert not list(finetune.Settings().problems())


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ({}, "runs/home-assistant"),
        ({"data": ("my/rows.v2.jsonl",)}, "runs/smollm2-rows"),
        ({"data": ("-",), "model": "models/Qwen 3/"}, "runs/Qwen-3-stdin"),
        ({"data": ("org/set", "b.csv=2")}, "runs/smollm2-set-b"),
        ({"model": "big.gguf"}, "runs/big-home-assistant"),
        ({"task": "my/sums.py"}, "runs/smollm2-sums"),
        ({"out": "here"}, "here"),
    ],
)
def test_the_folder_is_named_after_model_and_data(settings, folder):
    assert finetune.Settings(**settings).folder == folder


def test_steps_are_those_given_or_what_epochs_come_to():
    assert finetune.Settings().total_steps(7) == 640
    assert finetune.Settings(steps=3).total_steps(7) == 3
    assert finetune.Settings(epochs=1.5).total_steps(7) == 11


def test_choices_are_those_of_the_trainer():
    fields = {field.name: field.type for field in dataclasses.fields(finetune.Settings)}
    for name, known in (("optimizer", trainer.OPTIMIZERS), ("schedule", trainer.SCHEDULES)):
        hints = _settings.get_type_hints(finetune.Settings)
        assert hints[name].__args__ == tuple(known), fields[name]


def test_every_flag_of_the_adapter_is_a_field_of_its_configuration():
    of_config = {field.name for field in dataclasses.fields(jlora.LoraConfig)}
    assert set(_settings._kinds.OF_LORA) == of_config - {"init", "dtype"}
