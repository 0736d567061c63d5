"""Each mistake of a person is one message on stderr and exit status 2, before anything is done."""

import json
import os
import shutil

import pytest
from sealed import resealed

import train
from jlora import checkpoint, finetune, models, tasks, trainer
from jlora.finetune import _settle


@pytest.fixture
def good(flags, tmp_path):
    return [*flags, f"--out={tmp_path / 'run'}"]


def refused(arguments, capsys):
    """The message with which train.py refuses the arguments."""
    capsys.readouterr()
    assert train.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("train.py: ")
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=/nowhere/model"], "/nowhere/model"),
        (["--data=/nowhere/rows.jsonl"], "/nowhere/rows.jsonl can't be read: No such file"),
        (["--targets=qq_proj"], "matches none of the"),
        (["--targets=("], "is no regular expression"),
        (["--rank=0"], "rank is 0: expected a whole number of at least 1"),
        (["--rank=9"], "rank 9 is larger than it. Expected at most 8"),
        (["--alpha=-1"], "alpha is -1.0: expected a number above 0"),
        (["--steps=0"], "--steps is 0: expected at least 1"),
        (["--batch-size=0", "--eval-rows=0"], "--eval-rows is 0: expected at least 1"),
        (["--max-length=4"], "every held-out row has a prompt of at least 4 tokens"),
        (["--max-length=300"], "are more than the 256 positions of"),
        (["--warmup=2"], "--warmup is 2.0: expected at least 0 and at most 1"),
        (["--learning-rate=nan"], "--learning-rate is nan: expected at least 0"),
        (["--layers=0,7"], "has the layers 0 to 1, but layers names 7"),
        (["--tokens", '{"embed": [999]}'], "tokens names row 999"),
        (["--attention=cudnn"], "it computes in bfloat16 or float16, not in float32"),
        (["--resume"], "holds no run to go on with: run.json is missing"),
        (["--resume"], "--out chooses another folder"),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
    ],
)
def test_a_wrong_flag_is_named_before_anything_is_written(
    good, arguments, message, tmp_path, capsys
):
    assert message in refused([*good, *arguments], capsys)
    assert not (tmp_path / "run").exists()


def test_a_pattern_that_matches_nothing_shows_the_nearest_weights(good, capsys):
    assert "layers/attn/q_proj/kernel" in refused([*good, "--targets=qq_proj"], capsys)


def test_malformed_rows_are_named_by_their_lines(good, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\nno JSON\n{"prompt": 1}\n')
    told = refused([*good, f"--data={path}"], capsys)
    assert f"{path}: 2 of 3 lines can't be used" in told
    assert "line 2: not JSON: Expecting value at column 1" in told
    assert "line 3: 'prompt' is a number, not text" in told


def test_rows_beyond_the_limit_are_counted_in_one_line(tiny, rows, tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    long = {"prompt": "a", "completion": "b" * 300}
    path.write_text(rows.read_text() + json.dumps(long) + "\n")
    settings = finetune.Settings(model=str(tiny), data=(str(path),), max_length=100, seed=1)
    task = tasks.Rows(settings, tmp_path / "rows")
    rows, _ = task.rows()
    print(task.examples(rows, task.model(models.load))[1])
    assert "1 longer than 100 tokens: 1 cut, 0 dropped" in capsys.readouterr().out


def test_a_folder_that_holds_another_run_is_left_alone(good, tmp_path, capsys):
    run = trainer.Run(tmp_path / "run")
    run.begin({"settings": {}})
    told = refused(good, capsys)
    assert "holds another run: expected another folder, or overwrite=True to replace it" in told
    assert "--out chooses another folder, --overwrite replaces" in told
    assert "--resume goes on with a run" in told
    assert run.settings == {"settings": {}}


def test_a_folder_that_holds_something_else_is_left_alone(good, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    assert "is not empty and holds no run" in refused(good, capsys)
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    assert "is a file: expected a folder" in refused(
        [*good, f"--out={tmp_path / 'run' / 'thesis.tex'}"], capsys
    )


def test_a_template_that_never_ends_is_refused(flags, tmp_path, capsys):
    os.mkfifo(tmp_path / "chat.jinja")
    told = refused([*flags, f"--template={tmp_path / 'chat.jinja'}"], capsys)
    assert "chat.jinja is no regular file" in told


def test_resuming_with_other_settings_lists_the_differences(finished, capsys):
    told = refused([f"--out={finished}", "--steps=8", "--rank=4", "--seed=2", "--resume"], capsys)
    assert "rank was 3, now 4" in told
    assert "seed was 0, now 2" in told
    assert "steps was" not in told


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_batch_in_other_parts_is_another_one_where_something_drops_out(tmp_path, dropout):
    run = trainer.Run(tmp_path / "run")
    begun = [f"--out={run.directory}", "--data=rows.jsonl", f"--dropout={dropout}"]
    run.begin({"settings": finetune.parse(begun).settings.flat()})
    anew = [f"--out={run.directory}", "--resume", "--accumulate=2"]
    asked = finetune.parse(anew)
    if dropout:
        with pytest.raises(ValueError, match="accumulate was 1, now 2"):
            _settle.settled(asked, anew, run)
    else:
        assert _settle.settled(asked, anew, run).settings.accumulate == 2


def test_what_a_run_was_begun_without_had_its_default(finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    as_before = lambda run: run["settings"].update(remat=False, data=run["settings"]["data"][0])  # noqa: E731
    resealed(out / "run.json", as_before)
    resealed(out / "run.json", lambda run: run["settings"].pop("attention"))
    told = refused([f"--out={out}", "--resume", "--remat=full", "--attention=blocks"], capsys)
    assert "remat was 'products', now 'full'" in told
    assert "attention was" not in told
    assert train.main([f"--out={out}", "--resume", "--attention=blocks"]) == 0


def test_resuming_on_a_model_whose_weights_changed_is_refused(
    finished, make_llama, tmp_path, capsys
):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    other = str(make_llama(tmp_path / "other", seed=1))
    resealed(out / "run.json", lambda run: run["settings"].update(model=other))
    told = refused([f"--out={out}", "--resume"], capsys)
    assert "the base model changed: " in told
    assert "layers/attn/q_proj/kernel: the shape agrees, the values are others" in told


def test_a_run_goes_on_where_its_model_was_moved(finished, tmp_path, capsys):
    out, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished, out)
    shutil.copytree(trainer.Run(out).settings["settings"]["model"], moved)
    resealed(out / "run.json", lambda run: run["settings"].update(model=str(tmp_path / "gone")))
    assert "gone': no such file or folder" in refused([f"--out={out}", "--resume"], capsys)
    assert train.main([f"--out={out}", "--resume", f"--model={moved}"]) == 0
    assert checkpoint.describe(out / "adapter")["metadata"]["model"] == str(moved)


def test_resuming_on_rows_that_changed_is_refused(finished, rows, tmp_path, capsys):
    out, data = tmp_path / "run", tmp_path / "rows.jsonl"
    shutil.copytree(finished, out)
    data.write_text(rows.read_text().replace("even", "straight"))
    resealed(out / "run.json", lambda run: run["settings"].update(data=str(data)))
    assert f"the rows of {data} changed since" in refused([f"--out={out}", "--resume"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers=first"], "'first': expected whole numbers such as 0-2,5"),
        (["--columns=prompt"], "'prompt': expected names such as prompt=question,completion="),
        (["--template=/nowhere/chat.jinja"], "/nowhere/chat.jinja can't be read: "),
        (["--date=today"], "'today': expected a date such as 2026-11-27"),
        (["--rank-pattern=q_proj"], """'q_proj': expected a JSON object such as {"q_proj": 4}"""),
    ],
)
def test_a_flag_that_can_not_be_read_is_named(good, arguments, message, capsys):
    told = refused([*good, *arguments], capsys)
    assert message in told
    assert told.count("\n") == 1
