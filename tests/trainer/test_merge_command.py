import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from folders import to_gguf

import jlora
from jlora import checkpoint, models
from jlora.__main__ import main

EVERY_KIND = {
    "method": "dora",
    "rank_pattern": {"mlp": (3, 1)},
    "train": "norm",
    "tokens": {"embed": (5, 17)},
}


def save_adapter(model, directory, **options):
    """A strong random adapter of the model in a folder."""
    config = jlora.LoraConfig(**{"targets": "(q|down)_proj", "rank": 3, "alpha": 5, **options})
    axes = jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 4), int))
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = jax.tree.map(
        lambda x, trains: (
            x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) if trains else x
        ),
        lora,
        jlora.mask(lora),
    )
    dtype = str(model.params["norm"]["scale"].dtype)
    metadata = {"model": model.name, "dtype": dtype, "system": "Count."}
    checkpoint.save(directory, lora, config, base=frozen, metadata=metadata)
    return lora


def noise(shape):
    return 0.3 * np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def model(tiny):
    return models.load(str(tiny))


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters") / "a"
    return directory, save_adapter(model, directory)


@pytest.fixture
def merge(adapter, tmp_path):
    """Runs the command on the tiny model's adapter; the folder, once it succeeded."""

    def run(*flags, status=0):
        out = tmp_path / "merged"
        arguments = ["merge", "--adapter", str(adapter[0]), "--out", str(out), *flags]
        assert main(arguments) == status
        return out

    return run


def snapshot(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_folder_holds_every_bit_of_the_merged_model(model, adapter, merge):
    loaded = models.load(merge())
    assert_same_bits(loaded.params, jlora.merge(model.params, adapter[1]))
    assert loaded.config == model.config
    assert loaded.tokenizer.encode("a <|im_end|>é") == model.tokenizer.encode("a <|im_end|>é")
    assert loaded.tokenizer.template == model.tokenizer.template


def test_every_kind_of_adapted_leaf_is_merged(model, tmp_path):
    lora = save_adapter(model, tmp_path / "adapter", **EVERY_KIND)
    assert {type(node).__name__ for node in lora.values()} == {
        "DoraWeight",
        "WholeWeight",
        "TokenRows",
    }
    base = checkpoint.fingerprint(model.params)
    loaded = models.load(models.export(model.name, tmp_path / "out", lora=lora, base=base))
    assert_same_bits(loaded.params, jlora.merge(model.params, lora))


def test_many_small_files_are_the_same_model(model, adapter, merge):
    out = merge("--max-shard-size", "7.5kB")
    names = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(names) == 8
    assert names[0] == "model-00001-of-00008.safetensors"
    largest = {name: (out / name).stat().st_size for name in names}
    assert sum(size > 7500 + 2000 for size in largest.values()) == 1  # the embedding alone
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == names
    held = {name: safetensors.numpy.load_file(out / name) for name in names}
    assert index["weight_map"] == {t: name for name, file in held.items() for t in file}
    total = sum(array.nbytes for file in held.values() for array in file.values())
    assert index["metadata"]["total_size"] == total
    assert_same_bits(models.load(out).params, jlora.merge(model.params, adapter[1]))


def test_bfloat16_is_summed_in_float32_and_rounded_once(model, adapter, merge):
    out = merge("--dtype", "bfloat16")
    want = jax.tree.map(lambda x: x.astype("bfloat16"), jlora.merge(model.params, adapter[1]))
    assert_same_bits(models.load(out, dtype="bfloat16").params, want)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_files_in_bfloat16_stay_in_bfloat16(model, merge, tmp_path):
    half = models.export(model.name, tmp_path / "half", dtype="bfloat16")
    loaded = models.load(half, dtype="bfloat16")
    lora = save_adapter(loaded, tmp_path / "adapter", targets="q_proj", method="dora")
    base = checkpoint.fingerprint(loaded.params)
    out = models.export(half, tmp_path / "out", lora=lora, base=base)
    assert (out / "model.safetensors").stat().st_size < (
        half / "model.safetensors"
    ).stat().st_size + 99
    assert_same_bits(models.load(out, dtype="bfloat16").params, jlora.merge(loaded.params, lora))


def test_a_gguf_file_becomes_a_folder(tiny, model, tmp_path):
    file = to_gguf(tiny, tmp_path / "tiny.gguf")
    loaded = models.load(file)
    lora = save_adapter(loaded, tmp_path / "adapter")
    again = models.load(
        models.export(file, tmp_path / "out", lora=lora, base=checkpoint.fingerprint(loaded.params))
    )
    assert_same_bits(again.params, jlora.merge(loaded.params, lora))
    assert again.config == loaded.config
    for text in ("a <|im_end|>é", "  x\n"):
        assert again.tokenizer.encode(text) == loaded.tokenizer.encode(text)
    assert again.tokenizer.template == loaded.tokenizer.template
    assert again.tokenizer.stop_ids == loaded.tokenizer.stop_ids


def test_a_folder_that_is_not_empty_stays(merge, capsys, tmp_path):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "work.txt").write_text("mine")
    merge(status=2)
    assert "is not empty" in capsys.readouterr().err
    merge("--overwrite", status=2)
    assert "is nothing that jlora wrote, and is not overwritten" in capsys.readouterr().err
    assert snapshot(out) == {"work.txt": b"mine"}


def test_overwrite_replaces_all_files_once_the_new_ones_are_complete(merge):
    out = merge("--max-shard-size", "7.5kB")
    before = snapshot(out)
    with no_file_longer_than(10_000):
        merge("--overwrite", status=1)
    assert snapshot(out) == before
    merge("--overwrite")
    assert (out / "model.safetensors").exists()
    assert len(list(out.glob("*.safetensors"))) == 1
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


@contextlib.contextmanager
def no_file_longer_than(size):
    """As a full disk: the system refuses to write on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_nothing(merge, capsys, tmp_path, monkeypatch):
    with no_file_longer_than(10_000):
        out = merge(status=1)
    assert capsys.readouterr().err == f"jlora merge: {out} could not be written: File too large\n"
    full = shutil.disk_usage(tmp_path)._replace(free=9_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    merge(status=1)
    told = capsys.readouterr().err
    # jlora.json names the adapter's folder, whose path has any length
    assert re.fullmatch(
        rf"jlora merge: {re.escape(str(out))} could not be written: it needs 72\.\d\d kB, and the "
        r"disk has 9\.00 kB left\n",
        told,
    )
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from jlora.__main__ import main
from jlora.models._files import _shards
synced = []
def fsync(number):
    synced.append(number)
    if len(synced) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
main(sys.argv[1:])
"""


def test_a_killed_run_leaves_no_folder_and_the_next_one_clears_up(adapter, merge, tmp_path):
    out = tmp_path / "merged"
    arguments = ["merge", "--adapter", str(adapter[0]), "--out", str(out)]
    command = [sys.executable, "-c", KILLED, *arguments, "--max-shard-size", "7.5kB"]
    assert subprocess.run(command, check=False).returncode == -9
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".merged.unfinished-")
    assert len(list(left.glob("*.safetensors"))) == 4
    merge()
    assert list(tmp_path.iterdir()) == [out]


def test_another_base_is_refused_before_anything_appears(make_llama, merge, tmp_path, capsys):
    values = make_llama(tmp_path / "values", seed=5)
    shapes = make_llama(tmp_path / "shapes", width=32)
    for other, told in (
        (values, "embed/embedding: the shape agrees, the values are others"),
        (shapes, "the adapter is for shape (2, 24, 24), the leaf has (2, 32, 24)"),
    ):
        out = merge("--model", str(other), status=2)
        assert not out.exists()
        err = capsys.readouterr().err
        assert told in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shapes", "values"]


def test_one_layer_that_differs_is_found_while_the_weights_stream(model, adapter, tmp_path, tiny):
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    tensors = safetensors.numpy.load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] += 1
    safetensors.numpy.save_file(tensors, other / "model.safetensors")
    base = checkpoint.fingerprint(model.params)
    with pytest.raises(ValueError, match="layers/mlp/down_proj/kernel: the shape agrees"):
        models.export(other, tmp_path / "out", lora=adapter[1], base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_is_read_is_never_replaced(adapter, tiny, tmp_path, capsys):
    copy = tmp_path / "models" / "copy"
    shutil.copytree(tiny, copy)
    (tmp_path / "link").symlink_to(copy)
    lora = adapter[0]
    for out in (copy, tmp_path / "models", tmp_path / "link", lora, lora.parent):
        flags = ["--adapter", str(lora), "--model", str(copy), "--out", str(out), "--overwrite"]
        assert main(["merge", *flags]) == 2
        assert "is what is read, or holds it: choose another folder" in capsys.readouterr().err


def test_values_that_the_dtype_cannot_hold_are_named(model, tiny, tmp_path):
    huge = {"norm/scale": jlora.WholeWeight(jnp.full(24, 1e6))}
    with pytest.raises(ValueError, match="norm/scale: the merged weight has values that float16"):
        models.export(tiny, tmp_path / "out", lora=huge, dtype="float16")
    with pytest.raises(ValueError, match="dtype is int8: expected one of float32, float16"):
        models.export(tiny, tmp_path / "out", dtype="int8")


def test_mistyped_flags_are_one_message(capsys):
    for flags, told in (
        (["--max-shard-size", "5XB"], "'5XB' is no size: expected one such as 500MB or 5GB"),
        (["--max-shard-size", "0.1"], "'0.1' is less than a byte"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        ([], "--adapter"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["merge", "--out", "x", *flags])
        assert told in capsys.readouterr().err


STREAMED = """
import resource, sys
import numpy as np
import jlora
from jlora import models

def adapter(layers):
    axes = jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,))
    a, b = np.ones((layers, 40, 3), "float32"), np.ones((layers, 3, 6000), "float32")
    return {"layers/mlp/down_proj/kernel": jlora.LoraWeight(a, b, np.float32(1), axes)}

def peak_after(name, layers):
    models.export(name, name + "-out", lora=adapter(layers), max_shard_bytes=7 * 10**6)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

print(peak_after("short", 1), peak_after("deep", 20))
"""


def test_memory_does_not_grow_with_the_model(make_llama, tmp_path):
    make_llama(tmp_path / "short", layers=1, width=6000)
    deep = make_llama(tmp_path / "deep", layers=20, width=6000)
    size = (deep / "model.safetensors").stat().st_size
    assert size > 95 * 10**6
    command = [sys.executable, "-c", STREAMED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    short, grown_to = map(int, done.stdout.split())
    assert grown_to - short < 0.1 * size
    written = list((tmp_path / "deep-out").glob("*.safetensors"))
    assert len(written) > 10
    assert sum(path.stat().st_size for path in written) > 0.99 * size
