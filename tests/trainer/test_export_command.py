"""What leaves: adapters for PEFT and mlx-lm, with a card that says what they are."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jlora
import train
from jlora import checkpoint, models, peft
from jlora.__main__ import main


def adapter(tiny, directory, **options):
    """A saved adapter of jlora's own format, with what a run keeps beside it; its nodes."""
    model = models.load(tiny)
    config = jlora.LoraConfig(**{"targets": "q_proj|down_proj", "rank": 3, "alpha": 5, **options})
    axes = jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 4), int))
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = jax.tree.map(lambda leaf, trains: leaf + 0.1 if trains else leaf, lora, jlora.mask(lora))
    about = {
        "model": str(tiny),
        "system": "Be brief.",
        "settings": {"data": "rows.jsonl", "steps": 480},
    }
    checkpoint.save(directory, lora, config, base=model.params, metadata=about)
    return model, lora


@pytest.mark.parametrize("form", ["peft", "mlx"])
@pytest.mark.parametrize("options", [
    {},
    {"rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 7.0}},
    {"method": "dora"},
    {"targets": "q_proj|embed"},
    {"rank_pattern": {"q_proj": (0, 2)}},
], ids=str)  # fmt: skip
def test_what_was_exported_comes_back_the_same(form, options, tiny, tmp_path, capsys):
    model, lora = adapter(tiny, tmp_path / "a", **options)
    out = tmp_path / "out"
    given = ["--adapter", str(tmp_path / "a"), "--out", str(out), "--format", form]
    assert main(["export", *given]) == 0
    got = jlora.merge(model.params, peft.load(out, model)[0])
    want = jlora.merge(model.params, lora)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    card = (out / "README.md").read_text()
    for told in (f"jlora {jlora.__version__}", "rows.jsonl", "| steps | 480 |", "Be brief."):
        assert told in card
    assert main(["export", *given]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["export", *given, "--overwrite"]) == 0


def test_files_for_mlx_lm_are_in_its_orientation(tiny, tmp_path):
    _, lora = adapter(tiny, tmp_path / "a", rank_pattern={"down_proj": 2})
    out = tmp_path / "out"
    given = ["--adapter", str(tmp_path / "a"), "--out", str(out), "--format", "mlx"]
    assert main(["export", *given]) == 0
    tensors = load_file(out / "adapters.safetensors")
    q, down = lora["layers/attn/q_proj/kernel"], lora["layers/mlp/down_proj/kernel"]
    np.testing.assert_array_equal(tensors["model.layers.1.self_attn.q_proj.lora_a"], q.a[1])
    a, b = (tensors[f"model.layers.0.mlp.down_proj.lora_{one}"] for one in "ab")
    assert (a.shape, b.shape) == ((40, 3), (3, 24))  # one rank for all
    settings = json.loads((out / "adapter_config.json").read_text())
    want = down.scaling * down.a[0] @ down.b[0]
    np.testing.assert_allclose(settings["lora_parameters"]["scale"] * a @ b, want, rtol=1e-5)
    assert settings == {
        "fine_tune_type": "lora",
        "lora_parameters": {
            "dropout": 0.0,
            "keys": ["mlp.down_proj", "self_attn.q_proj"],
            "rank": 3,
            "scale": 2.5,
        },
        "model": str(tiny),
        "num_layers": 2,
    }


def test_what_mlx_lm_has_nothing_like_is_named(tiny, tmp_path, capsys):
    adapter(tiny, tmp_path / "a", train="norm")
    out = tmp_path / "out"
    given = ["--adapter", str(tmp_path / "a"), "--out", str(out), "--format", "mlx"]
    assert main(["export", *given]) == 2
    assert "modules_to_save is [" in capsys.readouterr().err
    assert not out.exists()


def test_what_vllm_asks_of_a_folder_holds(tiny, tmp_path):
    """Its loader reads these fields, and refuses any other name of a tensor."""
    adapter(tiny, tmp_path / "a")
    out = tmp_path / "out"
    assert main(["export", "--adapter", str(tmp_path / "a"), "--out", str(out)]) == 0
    settings = json.loads((out / "adapter_config.json").read_text())
    assert isinstance(settings["r"], int)
    assert settings["lora_alpha"] == 5
    assert isinstance(settings["target_modules"], list)
    assert not settings["modules_to_save"]
    assert not settings["use_dora"]
    for name in load_file(out / "adapter_model.safetensors"):
        assert name.startswith("base_model.model.")
        assert name.split(".")[-2:] in (["lora_A", "weight"], ["lora_B", "weight"])
    assert "--max-lora-rank 3" in (out / "README.md").read_text()


def test_a_card_says_what_vllm_does_not_honour(tiny, tmp_path):
    adapter(tiny, tmp_path / "a", method="dora", rank_pattern={"q_proj": 2})
    out = tmp_path / "out"
    assert main(["export", "--adapter", str(tmp_path / "a"), "--out", str(out)]) == 0
    told = (out / "README.md").read_text()
    assert "vLLM does not honour use_dora, rank_pattern: merge the adapter for it." in told


def test_a_base_by_the_name_of_the_hub_stands_in_the_card(tiny, tmp_path):
    adapter(tiny, tmp_path / "a")
    out = tmp_path / "out"
    given = ["--adapter", str(tmp_path / "a"), "--out", str(out), "--base-model", "owner/base@v2"]
    assert main(["export", *given]) == 0
    assert 'base_model: "owner/base"' in (out / "README.md").read_text()
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("owner/base", "v2")


def test_a_run_writes_its_adapter_for_peft_as_well(flags, tmp_path, capsys):
    out = tmp_path / "run"
    short = ["--steps=1", "--eval-rows=1", "--max-new-tokens=1"]
    assert train.main([*flags, f"--out={out}", "--save-as=peft", *short]) == 0
    model = models.load(json.loads((out / "peft" / "adapter_config.json").read_text())[
        "base_model_name_or_path"])  # fmt: skip
    lora, _ = checkpoint.restore(out / "adapter", base=model.params)
    got, want = (jlora.merge(model.params, n) for n in (peft.load(out / "peft", model)[0], lora))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert "| after |" in (out / "peft" / "README.md").read_text()
