"""Several adapters on one base: the commands sum them, each times its weight."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
import jlora.peft
from jlora import checkpoint, models
from jlora.__main__ import main
from jlora._weighted import weighted


@pytest.fixture(scope="module")
def model(tiny):
    return models.load(str(tiny))


def saved(model, folder, seed, *, peft=False, name=None, **options):
    """A strong random adapter in a folder."""
    config = jlora.LoraConfig(**{"targets": "(q|down)_proj", "rank": 2, "alpha": 3, **options})
    axes = jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 4), int))
    key = jax.random.key(seed)
    frozen, lora = jlora.split(model.params, config, key, axes=axes)
    lora = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(key, x.shape) if x.ndim else x, lora)
    if peft:
        jlora.peft.save(folder, lora, config, model)
    else:
        about = {"model": name or model.name, "dtype": "float32", "system": f"Be {seed}."}
        checkpoint.save(folder, lora, config, base=frozen, metadata=about)
    return lora


def test_a_weight_stands_behind_the_last_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rate=0.1").mkdir()
    each = {
        "A": ("A", 1.0),
        "A=0.5": ("A", 0.5),
        "run/a=b=-2": ("run/a=b", -2.0),
        "a=b": ("a=b", 1.0),
        "rate=0.1": ("rate=0.1", 1.0),  # a folder
        "rate=0.1=3": ("rate=0.1", 3.0),
        "=2": ("=2", 1.0),
    }
    assert {text: weighted(text) for text in each} == each


@pytest.mark.parametrize("peft", [False, True])
def test_merging_several_is_the_weighted_sum_of_their_changes(model, tiny, peft, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    first = saved(model, one, 1)
    second = saved(model, other, 2, peft=peft, rank=3, targets="(q|up)_proj")
    out, sent = tmp_path / "out", tmp_path / "sent"
    given = [f"--model={tiny}", f"--adapter={one}=0.5", f"--adapter={other}=-2"]
    assert main(["merge", *given, f"--out={out}"]) == 0
    base = model.params
    changes = (jlora.merge(base, lora) for lora in (first, second))
    wanted = jax.tree.map(lambda w, a, b: w + 0.5 * (a - w) - 2.0 * (b - w), base, *changes)
    found = models.load(out).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, wanted)
    assert np.abs(np.asarray(found["layers"]["attn"]["q_proj"]["kernel"])
                  - base["layers"]["attn"]["q_proj"]["kernel"]).max() > 0.1  # fmt: skip
    assert main(["export", *given, f"--out={sent}"]) == 0
    again, _ = jlora.peft.load(sent, model)
    again = jlora.merge(base, again)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), again, wanted)


def test_answers_are_those_of_the_merged_model(model, tiny, tmp_path, capsys):
    one, other, out = (tmp_path / name for name in ("one", "other", "out"))
    saved(model, one, 1)
    saved(model, other, 2)
    given = [f"--adapter={one}", f"--adapter={other}=0.25"]
    asked = ["--prompt=Hello", "--max-new-tokens=6", "--system=Be 1."]
    assert main(["generate", *given, "--prompt=Hello", "--max-new-tokens=6"]) == 0
    answer = capsys.readouterr().out
    assert main(["merge", *given, f"--out={out}"]) == 0
    capsys.readouterr()
    assert main(["generate", f"--model={out}", *asked]) == 0
    assert capsys.readouterr().out == answer
    assert main(["generate", f"--model={tiny}", *asked]) == 0
    assert capsys.readouterr().out != answer


@pytest.mark.parametrize(
    ("options", "weights", "said"),
    [
        ({"method": "dora"}, ("", ""), "can't be combined"),
        ({"train": "norm/scale"}, ("", ""), "can't be combined"),
        ({}, ("=0", ""), "has the weight 0.0: expected a number, not 0"),
        ({}, ("=nan", ""), "has the weight nan"),
    ],
)
def test_what_has_no_sum_is_one_error(model, options, weights, said, tmp_path, capsys):
    one, other = tmp_path / "one", tmp_path / "other"
    saved(model, one, 1, **options)
    saved(model, other, 2, **options)
    given = [f"--adapter={one}{weights[0]}", f"--adapter={other}{weights[1]}"]
    for command in (["merge", f"--out={tmp_path / 'out'}"], ["generate", "--prompt=a"]):
        assert main([*command, *given]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adapters_of_different_models_ask_which_is_meant(model, tiny, tmp_path, capsys):
    one, other = tmp_path / "one", tmp_path / "other"
    saved(model, one, 1)
    saved(model, other, 2, name="smollm2")
    given = [f"--adapter={one}", f"--adapter={other}"]
    assert main(["generate", "--prompt=a", *given]) == 2
    assert "name the model with --model" in capsys.readouterr().err
    assert main(["generate", "--prompt=a", "--max-new-tokens=2", f"--model={tiny}", *given]) == 0


def test_flags_of_an_adapter_are_gathered():
    from jlora._commands import _flags

    parser = argparse.ArgumentParser()
    _flags.add_model(parser)
    assert parser.parse_args([]).adapter == []
    found = parser.parse_args(["--adapter", "A=0.5", "--adapter", "B"]).adapter
    assert found == [("A", 0.5), ("B", 1.0)]
