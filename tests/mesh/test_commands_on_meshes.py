"""Commands with --mesh answer as on one device, whatever the axes divide of the model."""

import jax
import numpy as np
import pytest
from folders import edit
from safetensors.numpy import load_file, save_file
from tiny import save_tiny_llama

import jlora
from jlora import checkpoint, models
from jlora.__main__ import main

MESHES = ("data=1,model=4", "data=2,model=2", "fsdp=8", "model=-1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model with 3 heads, one of keys, and 259 tokens: no axis of 2, 4 or 8 divides them."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """A strong adapter for the model, and its folder."""
    model = models.load(str(tiny))
    config = jlora.LoraConfig(targets="_proj", rank=2, alpha=64)
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=_axes(model))
    lora = jax.tree.map(lambda leaf: leaf + 0.3, lora)
    directory = tmp_path_factory.mktemp("adapters") / "a"
    metadata = {"model": str(tiny), "dtype": "float32", "system": "Count."}
    checkpoint.save(directory, lora, config, base=frozen, metadata=metadata)
    return directory


@pytest.fixture(scope="module")
def cut(tiny, adapter, tmp_path_factory):
    """The same arrays, saved from a mesh on which many are cut: what a run there writes."""
    layout = models.Layout(models.make_mesh({"data": 1, "fsdp": 4, "model": 2}), small=0)
    model = models.load(str(tiny), mesh=layout)
    lora, config = checkpoint.restore(adapter)
    lora = jax.device_put(lora, layout.of_adapter(model.params, lora))
    assert sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(lora)) > 5
    directory = tmp_path_factory.mktemp("adapters") / "cut"
    metadata = checkpoint.describe(adapter)["metadata"]
    checkpoint.save(directory, lora, config, base=model.params, metadata=metadata)
    return directory


def _axes(model):
    return jlora.trace_axes(model.apply, model.params, jax.numpy.zeros((1, 4), int))


def answer(capsys, *arguments):
    assert main(["generate", "--prompt", "12?", "--max-new-tokens", "6", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("mesh", MESHES)
def test_an_answer_is_the_one_of_one_device_streamed_or_not(mesh, adapter, capsys):
    alone = answer(capsys, "--adapter", str(adapter))
    assert answer(capsys, "--adapter", str(adapter), "--mesh", mesh) == alone
    assert answer(capsys, "--adapter", str(adapter), "--mesh", mesh, "--stream") == alone


@pytest.mark.parametrize("command", ["merge", "export"])
def test_an_adapter_of_a_mesh_is_written_as_that_of_one_device(command, adapter, cut, tmp_path):
    """Neither command needs a mesh: the one takes a layer at a time, the other no weights."""
    written = {}
    for name, directory in {"one": adapter, "cut": cut}.items():
        assert main([command, "--adapter", str(directory), "--out", str(tmp_path / name)]) == 0
        files = sorted((tmp_path / name).glob("*.safetensors"))
        written[name] = {path.name: path.read_bytes() for path in files}
    assert written["one"] == written["cut"] != {}


def test_of_equal_best_tokens_the_first_is_chosen_across_shards(tiny, tmp_path):
    tensors = load_file(tiny / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    # 260 rows, 65 on each of 4 devices: each token has its like on every other one
    folder = save_tiny_llama(tmp_path / "ties")
    edit(folder / "config.json", vocab_size=260)
    rows = np.tile(table[2:67], (4, 1))
    save_file({**tensors, "model.embed_tokens.weight": rows}, folder / "model.safetensors")
    alone = models.load(str(folder))
    on = models.load(str(folder), mesh=models.make_mesh({"data": 1, "model": 4}))
    table = on.params["embed"]["embedding"]
    assert table.sharding.shard_shape(table.shape) == (65, 24)
    messages = [{"role": "user", "content": "ab"}]
    options = {"max_new_tokens": 6}
    want = models.answer(alone, [messages], **options)
    assert models.answer(on, [messages], **options) == want


@pytest.mark.parametrize(
    ("mesh", "told"),
    [
        ("model=16", "it has 16 places, more than the 8 devices"),
        ("model=3,data=-1", "3 does not divide the 8 devices"),
        ("rows=2", "an axis 'rows', of which there are data, fsdp, model"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_one_line(mesh, told, tiny, capsys):
    status = main(["generate", "--prompt", "a", "--model", str(tiny), "--mesh", mesh])
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err


@pytest.mark.parametrize("mesh", ["model", "model=2,model=4", "model=x", "=2", ""])
def test_what_is_no_mesh_is_told_with_one_that_is(mesh, tiny, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--prompt", "a", "--model", str(tiny), "--mesh", mesh])
    assert stopped.value.code == 2
    assert "expected axes such as data=2,model=4 or fsdp=-1" in capsys.readouterr().err
