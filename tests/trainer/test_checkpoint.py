import contextlib
import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sealed import resealed

import jlora
from jlora import checkpoint, trainer

CONFIG = jlora.LoraConfig(targets="proj|out", rank=3, alpha=5.0, exclude="skip")
AXES = {
    "layers/proj": jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,)),
    "out": jlora.Axes(inputs=(0, 1), outputs=(2,)),
}


def base(dtype="float32", width=7):
    key = jax.random.key(0)
    return {
        "layers": {"proj": jax.random.normal(key, (2, width, 11), dtype), "skip": jnp.ones(5)},
        "out": jax.random.normal(key, (3, 4, 13), dtype),
    }


def adapter(params=None, config=CONFIG):
    _, lora = jlora.split(
        base() if params is None else params, config, jax.random.key(1), axes=AXES
    )
    return jax.tree.map(noisy, lora)


def noisy(leaf):
    return leaf + jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@contextlib.contextmanager
def no_file_longer_than(size):
    """As a full disk: the system refuses to write on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_comes_back_bit_for_bit_with_its_axes_and_configuration(tmp_path, dtype):
    config = jlora.LoraConfig(targets=("proj", "out"), rank=3, dtype=dtype)
    lora = adapter(config=config)
    checkpoint.save(tmp_path / "a", lora, config, base=base(), metadata={"model": "mine"})
    restored, its_config = checkpoint.restore(tmp_path / "a", base=base())
    assert_same(restored, lora)
    assert its_config == config
    assert checkpoint.describe(tmp_path / "a")["metadata"] == {"model": "mine"}


def test_every_kind_of_node_comes_back_bit_for_bit(tmp_path):
    params = {**base(), "table": jnp.ones((9, 4)), "scale": jnp.ones(5)}
    config = jlora.LoraConfig(
        targets="proj|out", method="dora", rank=3, rank_pattern={"proj": (1, 3)}, dropout=0.1,
        train="scale", tokens={"table": (2, 7)}, init="pissa",
    )  # fmt: skip
    frozen, lora = jlora.split(params, config, jax.random.key(1), axes=AXES)
    checkpoint.save(tmp_path / "a", lora, config, base=frozen)
    restored, its_config = checkpoint.restore(tmp_path / "a", base=frozen)
    assert_same(restored, lora)
    assert its_config == config
    kinds = [type(node).__name__ for node in restored.values()]
    assert kinds == ["DoraWeight", "DoraWeight", "WholeWeight", "TokenRows"]


def test_a_function_as_targets_is_kept_as_the_paths_that_it_chose(tmp_path):
    config = jlora.LoraConfig(targets=lambda path, leaf: path == "out", rank=3)
    lora = adapter(config=config)
    checkpoint.save(tmp_path / "a", lora, config)
    restored, its_config = checkpoint.restore(tmp_path / "a")
    assert_same(restored, lora)
    assert its_config.targets == ("^out$",)


def test_the_adapter_is_placed_as_the_shardings_say(tmp_path):
    lora = adapter()
    checkpoint.save(tmp_path / "a", lora, CONFIG)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    for shardings in (place, jax.tree.map(lambda _: place, lora)):
        restored, _ = checkpoint.restore(tmp_path / "a", shardings=shardings)
        assert_same(restored, lora)
        assert all(leaf.sharding == place for leaf in jax.tree.leaves(restored))
    with pytest.raises(ValueError, match="shardings have no place for out/a"):
        checkpoint.restore(tmp_path / "a", shardings={"layers/proj": lora["layers/proj"]})


def test_saving_over_anything_needs_overwrite_and_leaves_other_files(tmp_path):
    lora = adapter()
    checkpoint.save(tmp_path / "a", lora, CONFIG)
    with pytest.raises(ValueError, match="already holds an adapter: overwrite=True replaces it"):
        checkpoint.save(tmp_path / "a", lora, CONFIG)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    doubled = jax.tree.map(lambda leaf: 2 * leaf, lora)
    checkpoint.save(tmp_path / "a", doubled, CONFIG, overwrite=True)
    assert_same(checkpoint.restore(tmp_path / "a")[0], doubled)
    names = sorted(entry.name for entry in (tmp_path / "a").iterdir())
    assert names == ["adapter.json", "arrays-2", "notes.txt"]

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"b holds other files \(thesis.tex\)"):
        checkpoint.save(tmp_path / "b", lora, CONFIG)
    with pytest.raises(ValueError, match=r"thesis.tex is a file"):
        checkpoint.save(tmp_path / "b" / "thesis.tex", lora, CONFIG)


def test_a_save_that_breaks_off_leaves_the_old_adapter_whole(tmp_path, monkeypatch):
    lora = adapter()
    checkpoint.save(tmp_path / "a", lora, CONFIG)
    monkeypatch.setattr("jlora._files.write_json", lambda *_: 1 / 0)
    for directory in (tmp_path / "a", tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            checkpoint.save(directory, jax.tree.map(jnp.cos, lora), CONFIG, overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path / "a") == ["adapter.json", "arrays-1"]
    assert names(tmp_path / "new") == []
    assert_same(checkpoint.restore(tmp_path / "a")[0], lora)


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_a_save_that_was_killed_left_is_replaced_by_the_next(tmp_path, overwrite):
    directory = tmp_path / "a"
    if overwrite:
        checkpoint.save(directory, adapter(), CONFIG)
    for left in ("arrays-2", "arrays-11.orbax-checkpoint-tmp", "arrays-3.orbax-checkpoint-tmp-17"):
        (directory / left / "ocdbt.process_0").mkdir(parents=True)
    if not overwrite:
        with pytest.raises(ValueError, match=r"a holds no adapter: adapter\.json is missing"):
            checkpoint.restore(directory)
    later = jax.tree.map(jnp.cos, adapter())
    checkpoint.save(directory, later, CONFIG, overwrite=overwrite)
    assert names(directory) == ["adapter.json", "arrays-12"]
    assert_same(checkpoint.restore(directory)[0], later)


def test_another_base_is_refused_with_every_difference(tmp_path):
    checkpoint.save(tmp_path / "a", adapter(), CONFIG, base=base())
    other = base() | {"new": jnp.ones(2)}
    other["layers"] = {"proj": base(width=8)["layers"]["proj"]}
    with pytest.raises(ValueError, match="another base than the one given") as caught:
        checkpoint.restore(tmp_path / "a", base=other)
    assert "Of 4 leaves 3 differ" in str(caught.value)
    assert "layers/proj: expected float32(2, 7, 11), got float32(2, 8, 11)" in str(caught.value)
    assert "layers/skip: expected float32(5,), but there is no such leaf" in str(caught.value)
    assert "new: not expected, got float32(2,)" in str(caught.value)
    with pytest.raises(ValueError, match=r"out: expected float32\(3, 4, 13\), got bfloat16"):
        checkpoint.restore(tmp_path / "a", base=base("bfloat16"))
    tuned = base() | {"out": base()["out"] * 1.5}
    with pytest.raises(ValueError, match="out: the shape agrees, the values are others"):
        checkpoint.restore(tmp_path / "a", base=tuned)


def test_a_base_with_a_level_more_or_less_is_told_as_such(tmp_path):
    variables = {"batch_stats": {"mean": jnp.ones(5)}, "all": {"params": base()}}
    checkpoint.save(tmp_path / "a", adapter(), CONFIG, base=base())
    with pytest.raises(ValueError, match=r"The base is the branch 'all/params' of the tree given"):
        checkpoint.restore(tmp_path / "a", base=variables)
    _, lora = jlora.split(
        variables,
        CONFIG,
        jax.random.key(1),
        axes={f"all/params/{path}": each for path, each in AXES.items()},
    )
    checkpoint.save(tmp_path / "b", lora, CONFIG, base=variables)
    with pytest.raises(ValueError, match=r"The tree given is the branch 'all/params' of the base"):
        checkpoint.restore(tmp_path / "b", base=base())
    with pytest.raises(ValueError, match=r"than the one given\. Of 4 leaves"):
        checkpoint.restore(tmp_path / "a", base={**base(), "more": jnp.ones(2)})


def test_the_frozen_tree_in_the_adapters_place_is_no_adapter(tmp_path):
    with pytest.raises(ValueError, match=r"lora is no adapter: .* got dict with layers, out\."):
        checkpoint.save(tmp_path / "a", base(), CONFIG, base=adapter())
    assert not (tmp_path / "a").exists()


def test_what_the_adapter_replaces_may_have_other_values_but_no_other_shape(tmp_path):
    config = jlora.LoraConfig(targets="proj", rank=3, train="out")
    frozen, lora = jlora.split(base(), config, jax.random.key(1), axes=AXES)
    checkpoint.save(tmp_path, lora, config, base=frozen)
    other = {**frozen, "out": frozen["out"] + 1}
    again, _ = checkpoint.restore(tmp_path, base=other)
    assert_same(jlora.merge(other, again), jlora.merge(frozen, lora))
    with pytest.raises(ValueError, match="out"):
        checkpoint.restore(tmp_path, base={**frozen, "out": jnp.ones((3, 4, 14))})
    changed = {**frozen, "layers": {**frozen["layers"], "skip": jnp.zeros(5)}}
    with pytest.raises(ValueError, match="another base"):
        checkpoint.restore(tmp_path, base=changed)


def test_a_base_is_checked_by_shape_when_it_has_no_values(tmp_path):
    lora = adapter()
    checkpoint.save(tmp_path / "a", lora, CONFIG, base=jax.eval_shape(base))
    assert_same(checkpoint.restore(tmp_path / "a", base=base())[0], lora)
    with pytest.raises(ValueError, match="another base"):
        checkpoint.restore(tmp_path / "a", base=jax.eval_shape(lambda: base(width=8)))


def test_leaves_that_hold_no_numbers_are_no_hindrance(tmp_path):
    params = base() | {"act": jax.nn.relu, "key": jax.random.key(3), "eps": 1e-6, "as": jnp.float32}
    _, lora = jlora.split(params, CONFIG, jax.random.key(1), axes=AXES)
    checkpoint.save(tmp_path / "a", lora, CONFIG, base=params)
    assert_same(checkpoint.restore(tmp_path / "a", base=params)[0], lora)
    found = checkpoint.fingerprint(params)
    key = {"shape": [], "dtype": "key<fry>", "values": None, "sum": None}
    assert found.pop("key") == key
    assert found == checkpoint.fingerprint(base())
    with pytest.raises(ValueError, match=r"key: expected key<fry>\(\), but there is no such leaf"):
        checkpoint.restore(tmp_path / "a", base=base())


def test_a_fingerprint_is_what_it_ever_was():
    """Saved adapters hold it: another hash, or another word for a dtype, would refuse them all."""
    values = np.arange(200).reshape(8, 25)
    leaves = {name: jnp.asarray(values, name) for name in ("float32", "bfloat16", "int32")}
    found = checkpoint.fingerprint(leaves | {"numpy": values.astype(np.float16)})
    assert {path: tuple(leaf.values()) for path, leaf in found.items()} == {
        "float32": ([8, 25], "float32", "dcf25bd9fe489d3b", "e18e8d1aa315450c"),
        "bfloat16": ([8, 25], "bfloat16", "302bedd58b3cb3fb", "2627667d6ad13411"),
        "int32": ([8, 25], "int32", "a0ccae971a589962", "26887822525ccbf3"),
        "numpy": ([8, 25], "float16", "4b8a041cc8ac9452", "04aa2f566ef07675"),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["leaves"].pop("out"), "out/a: not expected"),
        (lambda d: d["leaves"].update(x=d["leaves"]["out"]), "x/a: missing"),
        (
            lambda d: d["leaves"]["layers/proj"]["arrays"]["a"].update(shape=[2, 9, 3]),
            r"layers/proj/a: expected float32\(2, 9, 3\), got float32\(2, 7, 3\)",
        ),
        (
            lambda d: d["leaves"]["out"].update(kind="OtherWeight"),
            "no kind of node is registered as 'OtherWeight'",
        ),
        (
            lambda d: d.update(version=9),
            "was written by a newer jlora: it is of version 9, this one reads versions up to 4",
        ),
        (lambda d: d.update(format="other"), "describes no jlora adapter"),
        (lambda d: d.pop("leaves"), "adapter.json is damaged: KeyError"),
        (lambda d: d["config"].update(wings=2), "adapter.json is damaged: TypeError"),
        (lambda d: d.update(arrays="arrays-7"), "arrays-7 is damaged, these files are missing"),
        (lambda d: d.update(arrays="../a/arrays-1"), "arrays are in '../a/arrays-1', expected a"),
        (lambda d: d.update(arrays="/etc"), "its arrays are in '/etc', expected a folder"),
        (lambda d: d.update(arrays=["arrays-1"]), "adapter.json is damaged: its arrays are in"),
        (lambda d: d.update(seal={}), "it has no sums of its arrays' files"),
        (lambda d: d.pop("seal"), "it has no sums of its arrays' files"),
        (lambda d: d.update(version=1), "adapter.json is damaged: its version is 1"),
        (lambda d: d["config"].update(rank_pattern={"x{99999999999}": 3}), "regular expression"),
    ],
)
def test_a_damaged_adapter_is_one_clear_error(tmp_path, change, message):
    checkpoint.save(tmp_path / "a", adapter(), CONFIG)
    resealed(tmp_path / "a" / "adapter.json", change)
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path / "a")


def test_a_description_that_was_edited_is_not_read(tmp_path):
    checkpoint.save(tmp_path / "a", adapter(), CONFIG, metadata={2: "x", 10: 0.1})
    path = tmp_path / "a" / "adapter.json"
    written = path.read_text()
    path.write_text(json.dumps(json.loads(written)))  # in other white space
    assert checkpoint.describe(tmp_path / "a")["metadata"] == {"2": "x", "10": 0.1}
    for edited in (written.replace('"alpha": 5.0', '"alpha": 4.0'), written.replace("sum", "sun")):
        assert edited != written
        path.write_text(edited)
        with pytest.raises(ValueError, match=r"adapter\.json is damaged: it"):
            checkpoint.restore(tmp_path / "a")


def test_no_pattern_out_of_a_file_is_matched(tmp_path):
    """It could run for ever, and would: this one takes 2**40 steps."""
    checkpoint.save(tmp_path / "a", adapter(), CONFIG, base=base())
    endless = {"(.+)+" * 40 + "$x": 4}
    resealed(
        tmp_path / "a" / "adapter.json",
        lambda d: d["config"].update(rank_pattern=endless, targets="(a+)+$"),
    )
    _, config = checkpoint.restore(tmp_path / "a", base=base())
    assert config.rank_pattern == endless


def test_damaged_files_are_one_clear_error(tmp_path):
    checkpoint.save(tmp_path / "a", adapter(), CONFIG)
    for file in (tmp_path / "a").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-7] + b"garbage")
    with pytest.raises(ValueError, match=r"arrays-1 is damaged.*missing, changed or new: d/"):
        checkpoint.restore(tmp_path / "a")
    (tmp_path / "a" / "adapter.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter\.json is damaged"):
        checkpoint.restore(tmp_path / "a")
    with pytest.raises(ValueError, match="gone is no folder"):
        checkpoint.restore(tmp_path / "gone")


def test_an_adapter_that_fits_nothing_is_not_saved(tmp_path):
    lora = adapter()
    with pytest.raises(ValueError, match="it has rank 3, the configuration says 2"):
        checkpoint.save(tmp_path / "a", lora, jlora.LoraConfig(targets="proj", rank=2))
    with pytest.raises(ValueError, match="does not fit"):
        checkpoint.save(tmp_path / "a", lora, CONFIG, base=base(width=8))
    with pytest.raises(ValueError, match="the adapter is empty"):
        checkpoint.save(tmp_path / "a", {}, CONFIG)
    with pytest.raises(ValueError, match="metadata can't be written as JSON"):
        checkpoint.save(tmp_path / "a", lora, CONFIG, metadata={"x": object()})
    assert not (tmp_path / "a").exists()


def test_saving_and_restoring_keep_the_terminal_clean(tmp_path):
    code = f"""
import jax, jlora
from jlora import checkpoint, trainer
config = jlora.LoraConfig(targets="w", rank=2)
frozen, lora = jlora.split({{"w": jax.numpy.ones((7, 5))}}, config, jax.random.key(0))
checkpoint.save({str(tmp_path / "a")!r}, lora, config, base=frozen)
checkpoint.restore({str(tmp_path / "a")!r}, base=frozen)
run = trainer.Run({str(tmp_path / "run")!r})
run.begin({{}})
run.save(1, lora)
trainer.Run({str(tmp_path / "run")!r}).restore(lora)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("size", [10, 100])
def test_a_disk_that_fills_is_said_and_costs_nothing_that_was_saved(tmp_path, size):
    first = adapter()
    checkpoint.save(tmp_path / "a", first, CONFIG, base=base())
    run = trainer.Run(tmp_path / "run")
    run.begin({"rank": 3})
    run.save(1, first)
    run.record("results", {"loss": 1.5})
    later = jax.tree.map(noisy, first)
    with no_file_longer_than(size):
        with pytest.raises(OSError, match=r"could not be written"):
            checkpoint.save(tmp_path / "a", later, CONFIG, base=base(), overwrite=True)
        with pytest.raises(OSError, match=r"new/arrays-1 could not be written"):
            checkpoint.save(tmp_path / "new", later, CONFIG)
        with pytest.raises(OSError, match=r"run/checkpoints/2 could not be written"):
            run.save(2, later)
        with pytest.raises(OSError, match=r"results\.json could not be written"):
            run.record("results", {"answers": ["long"] * 1000})
    assert names(tmp_path / "a") == ["adapter.json", "arrays-1"]
    assert names(tmp_path / "new") == []
    assert_same(checkpoint.restore(tmp_path / "a", base=base())[0], first)
    again = trainer.Run(tmp_path / "run")
    step, state, _ = again.restore(later)
    assert step == 1
    assert_same(state, first)
    assert again.recorded("results") == {"loss": 1.5}
    again.save(2, later)
    assert again.latest_step == 2
    checkpoint.save(tmp_path / "a", later, CONFIG, base=base(), overwrite=True)
    assert_same(checkpoint.restore(tmp_path / "a")[0], later)
