import collections
import json
import os
import shutil
import subprocess
import sys
import types

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from sealed import resealed

import jlora
from jlora import checkpoint, models, trainer
from jlora.__main__ import main

CONFIG = jlora.LoraConfig(
    targets="proj|up",
    rank=4,
    alpha=6,
    rank_pattern={"up": (3, 0, 1)},
    method="dora",
    dropout=0.1,
    train="norm",
    tokens={"embed": (5, 2)},
)
AXES = dict.fromkeys(("layers/proj", "layers/up"), jlora.Axes((1,), (2,), (0,)))
METADATA = {
    "model": "some/model",
    "dtype": "bfloat16",
    "system": "Be brief.\nVery.",
    "settings": {"steps": 480, "learning_rate": 0.003, "seed": 0, "rank": 4, "remat": False},
    "by": "me",
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    params = {
        "embed": jnp.ones((11, 7), "bfloat16"),
        "layers": {"proj": jnp.ones((3, 7, 5)), "up": jnp.ones((3, 7, 13))},
        "norm": jnp.ones(7),
    }
    frozen, lora = jlora.split(params, CONFIG, jax.random.key(0), axes=AXES)
    directory = tmp_path_factory.mktemp("adapters") / "a"
    checkpoint.save(directory, lora, CONFIG, base=frozen, metadata=METADATA)
    return directory


def told(capsys, *arguments):
    assert main(["info", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_an_adapter_is_described(adapter, capsys):
    out = told(capsys, adapter)
    size = sum(path.stat().st_size for path in adapter.rglob("*") if path.is_file())
    base = json.loads(told(capsys, adapter, "--json"))["base"]
    # proj: 3 * (7 * 4 + 4 * 5 + 5), up: 3 * (7 * 3 + 3 * 13 + 13)
    assert out.splitlines() == [
        f"adapter  {adapter}",
        f"size     {size / 1000:.2f} kB on disk, 399 trained parameters in 4 leaves, float32",
        "method   rows (1), dora (2), whole (1)",
        "targets  proj|up",
        "rank     0-4",
        "scaling  1.5-6 (alpha 6)",
        "also     rank_pattern up: 3 | 0 | 1, dropout 0.1, train norm, tokens embed: 5 | 2",
        "base     some/model, bfloat16/float32, 462 parameters in 4 leaves, fingerprint "
        + base["fingerprint"],
        "trained  steps 480, learning_rate 0.003, seed 0",
        "system   Be brief. Very.",
        "notes    by me",
        "",
        "leaf         method  weight      rank  parameters",
        "embed        rows    (11, 7)     2             14",
        "layers/proj  dora    (3, 7, 5)   4            159",
        "layers/up    dora    (3, 7, 13)  0-3          219",
        "norm         whole   (7,)        -              7",
    ]


def test_json_says_the_same(adapter, capsys):
    known = json.loads(told(capsys, adapter, "--json"))
    assert known["kind"] == "adapter"
    assert known["parameters"] == sum(leaf["parameters"] for leaf in known["leaves"]) == 399
    assert known["leaves"][2] == {
        "path": "layers/up",
        "kind": "dora",
        "shape": [3, 7, 13],
        "rank": [3, 0, 1],
        "scaling": [2.0, 6.0],
        "parameters": 219,
        "dtype": "float32",
    }
    assert known["metadata"] == METADATA
    assert known["config"]["rank_pattern"] == {"up": [3, 0, 1]}


def test_a_reader_that_has_enough_is_told_nothing(adapter):
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "jlora", "info", str(adapter)]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_no_array_is_read(adapter, tmp_path, capsys):
    copy = tmp_path / "a"
    copy.mkdir()
    shutil.copy(adapter / "adapter.json", copy)
    before, after = told(capsys, adapter), told(capsys, copy)
    assert before.splitlines()[2:] == after.splitlines()[2:]


def test_a_run_points_to_its_adapter_and_shows_its_scores(finished, capsys):
    out = told(capsys, finished)
    results = json.loads((finished / "results.json").read_text())
    after = results["after"]
    assert f"run      {finished}\n" in out
    assert "came to  step 8 of 8, loss " in out
    assert "saved    step 8\n" in out
    assert f"\nafter     {after['loss']:.3f}  {after['exact_match']:.3f}\n" in out
    assert f"\nadapter  {finished / 'adapter'}\n" in out
    known = json.loads(told(capsys, finished, "--json"))
    assert known["scores"]["after"] == {k: after[k] for k in ("loss", "exact_match")}
    assert known["adapter"]["parameters"] > 0


def test_a_run_without_a_step_is_a_run(tmp_path, capsys):
    run = trainer.Run(tmp_path / "run")
    run.begin({"settings": {"model": "m", "data": "d", "steps": 3}})
    assert told(capsys, tmp_path / "run").splitlines()[-3:] == [
        "came to  no step yet",
        "",
        "adapter  not written yet",
    ]


def save_peft(directory):
    directory.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": ["v_proj", "q_proj"],
        "base_model_name_or_path": "some/model",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in range(3):
        for name in ("q_proj", "v_proj"):
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{module}.lora_A.weight"] = np.zeros((4, 7), np.float16)
            tensors[f"{module}.lora_B.weight"] = np.zeros((13, 4), np.float16)
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def test_a_folder_of_peft_is_described_by_its_headers(tmp_path, capsys):
    directory = save_peft(tmp_path / "peft")
    lines = told(capsys, directory).splitlines()
    assert lines[0] == f"adapter  {directory} (PEFT)"
    assert lines[1].endswith("on disk, 480 parameters, F16")
    assert lines[2:] == [
        "method   lora",
        "targets  q_proj, v_proj",
        "rank     4",
        "alpha    8",
        "also     use_rslora True",
        "base     some/model",
        "",
        "module                           holds           layers  parameters",
        "model.layers.*.self_attn.q_proj  lora_A, lora_B       3         240",
        "model.layers.*.self_attn.v_proj  lora_A, lora_B       3         240",
    ]
    (directory / "adapter_model.safetensors").unlink()
    assert "; adapter_model.safetensors is missing" in told(capsys, directory)


def test_a_merged_model_says_what_it_was_made_of(tiny, tmp_path, capsys):
    model = models.load(tiny)
    lora = {"norm/scale": jlora.WholeWeight(jnp.full(24, 2.0))}
    out = models.export(tiny, tmp_path / "out", lora=lora, metadata={"adapter": "runs/a"})
    lines = told(capsys, out).splitlines()
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    size = (out / "model.safetensors").stat().st_size
    assert lines == [
        f"model    {out}",
        f"size     {size / 1000:.2f} kB in 1 file, {count:,} parameters, F32",
        "kind     llama",
        f"made of  {tiny}",
        "merged   1 adapted leaf",
        "notes    adapter runs/a",
        f"by       jlora {jlora.__version__}",
        "",
        "leaf        kind         rank",
        "norm/scale  WholeWeight  -",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such file or folder"),
        (lambda folder: (folder / "adapter.json").unlink(), "is nothing that jlora knows"),
        (lambda folder: cut(folder / "adapter.json"), "adapter.json is damaged"),
        (lambda folder: without(folder / "adapter.json", "leaves"), "damaged: KeyError('leaves')"),
        (lambda folder: without(folder / "adapter.json", "base"), "damaged: KeyError('base')"),
        (lambda folder: (folder / "adapter.json").write_text("[]"), "describes no jlora adapter"),
    ],
)
def test_what_is_damaged_is_one_message(adapter, tmp_path, capsys, damage, message):
    copy = tmp_path / "a"
    shutil.copytree(adapter, copy)
    damage(copy)
    assert main(["info", str(copy)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jlora info: ")
    assert message in err
    assert err.count("\n") == 1


def test_damaged_tensors_of_peft_are_one_message(tmp_path, capsys):
    directory = save_peft(tmp_path / "peft")
    cut(directory / "adapter_model.safetensors")
    assert main(["info", str(directory)]) == 2
    assert "adapter_model.safetensors: no whole safetensors file" in capsys.readouterr().err


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without(path, name):
    resealed(path, lambda told: told.pop(name))


# Models


def test_a_model_is_described_without_its_weights(tiny, capsys):
    # 259 * 24 + 2 * (24 * 24 * 2 + 24 * 8 * 2 + 24 * 40 * 3 + 2 * 24) + 24
    size = (tiny / "model.safetensors").stat().st_size
    assert told(capsys, tiny).splitlines() == [
        f"model     {tiny}",
        "kind      llama",
        "loads     yes",
        f"size      15,168 parameters, float32, {size / 1000:.2f} kB on disk",
        "shape     2 layers of width 24, 259 tokens, 256 positions, the head is the embedding",
        "template  for conversations",
        "",
        'what "all-linear" adapts     weight',
        "layers/attn/k_proj/kernel    (2, 24, 8)",
        "layers/attn/o_proj/kernel    (2, 24, 24)",
        "layers/attn/q_proj/kernel    (2, 24, 24)",
        "layers/attn/v_proj/kernel    (2, 24, 8)",
        "layers/mlp/down_proj/kernel  (2, 40, 24)",
        "layers/mlp/gate_proj/kernel  (2, 24, 40)",
        "layers/mlp/up_proj/kernel    (2, 24, 40)",
    ]


def test_what_is_in_the_way_of_a_model_is_said(tiny, tmp_path, capsys):
    folder = shutil.copytree(tiny, tmp_path / "a")
    folders.edit(folder / "config.json", hidden_act="mish", logits_scaling=2.0)
    out = told(capsys, folder)
    assert out.splitlines()[:3] == [f"model  {folder}", "kind   llama", "loads  no"]
    assert "hidden_act is 'mish'" in out
    assert "logits_scaling is 2.0" in out
    known = json.loads(told(capsys, folder, "--json"))
    assert (known["loads"], known["architecture"]) == (False, "llama")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "pytorch_model.bin").write_bytes(b"")
    assert "config.json is missing" in told(capsys, tmp_path / "b")


def test_a_gguf_file_is_described(tiny, tmp_path, capsys):
    known = json.loads(told(capsys, folders.to_gguf(tiny, tmp_path / "a.gguf"), "--json"))
    assert (known["loads"], known["architecture"], known["parameters"]) == (True, "llama", 15168)


def test_a_model_on_the_hub_is_described_by_its_headers_alone(tiny, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    folder = shutil.copytree(tiny, tmp_path / "a")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    Tensor = collections.namedtuple("Tensor", "shape dtype")
    said = {name: Tensor(list(t.shape), "F32") for name, t in tensors.items()}
    content = types.SimpleNamespace(tensors=said)
    asked = []

    def fetched(hub_id, *, revision, allow_patterns):
        asked.append((hub_id, revision, "*.safetensors" in allow_patterns))
        return str(folder)

    def metadata(hub_id, revision):
        return types.SimpleNamespace(files_metadata={"model.safetensors": content})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)
    known = json.loads(told(capsys, "owner/name@v2", "--json"))
    assert (known["loads"], known["parameters"]) == (True, 15168)
    assert set(asked) == {("owner/name", "v2", False)}


def test_a_pattern_that_never_ends_is_said(adapter, tmp_path, capsys):
    directory = shutil.copytree(adapter, tmp_path / "a")
    endless = {"(?:.|.|.|.|.|.|.|.|.|.|.|.)*[!?]": 3}
    resealed(directory / "adapter.json", lambda told: told["config"].update(rank_pattern=endless))
    assert main(["info", str(directory)]) == 2
    assert "takes more than 1 second" in capsys.readouterr().err
