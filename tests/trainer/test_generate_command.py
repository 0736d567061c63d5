import subprocess
import sys

import jax
import pytest

import jlora
from jlora import checkpoint, models
from jlora.__main__ import main


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """A strong random adapter for the tiny model, and its folder."""
    model = models.load(str(tiny))
    config = jlora.LoraConfig(targets="_proj", rank=2, alpha=64)
    axes = jlora.trace_axes(model.apply, model.params, jax.numpy.zeros((1, 4), int))
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = jax.tree.map(lambda leaf: leaf + 0.3, lora)
    directory = tmp_path_factory.mktemp("adapters") / "a"
    metadata = {"model": str(tiny), "dtype": "float32", "system": "Count."}
    checkpoint.save(directory, lora, config, base=frozen, metadata=metadata)
    return directory


def answer(capsys, *arguments):
    assert main(["generate", "--prompt", "12?", "--max-new-tokens", "6", *arguments]) == 0
    return capsys.readouterr().out


def test_the_adapter_brings_its_model_and_changes_the_answer(tiny, adapter, capsys):
    adapted = answer(capsys, "--adapter", str(adapter))
    assert adapted == answer(capsys, "--adapter", str(adapter), "--model", str(tiny))
    assert adapted != answer(capsys, "--model", str(tiny), "--system", "Count.")


def test_an_adapter_of_another_model_is_refused(make_llama, adapter, tmp_path, capsys):
    other = make_llama(tmp_path / "other", seed=5)
    status = main(["generate", "--prompt", "a", "--adapter", str(adapter), "--model", str(other)])
    assert status == 2
    told = capsys.readouterr().err
    assert told.startswith("jlora generate: ")
    assert "was trained on another base than the one given" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model is missing, and no adapter says which it was trained on"),
        (["--adapter", "/nowhere"], "/nowhere is no folder"),
        (["--model", "/nowhere/model"], "/nowhere/model"),
    ],
)
def test_bad_input_is_one_message(arguments, message, capsys):
    status = main(["generate", "--prompt", "a", *arguments])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("jlora generate: ")


def test_the_command_ends_with_the_status_and_no_traceback():
    command = [sys.executable, "-m", "jlora", "generate", "--prompt", "a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--model is missing" in done.stderr
    assert "Traceback" not in done.stderr
