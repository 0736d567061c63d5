import contextlib
import json
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import checkpoint

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
    assert_same(checkpoint.restore(tmp_path / "a")[0], lora)
    with pytest.raises(ValueError, match=r"new holds no adapter: adapter\.json is missing"):
        checkpoint.restore(tmp_path / "new")
    checkpoint.save(tmp_path / "new", lora, CONFIG)  # what was left behind is in nobody's way
    assert_same(checkpoint.restore(tmp_path / "new")[0], lora)


def test_another_base_is_refused_with_every_difference(tmp_path):
    checkpoint.save(tmp_path / "a", adapter(), CONFIG, base=base())
    other = base() | {"new": jnp.ones(2)}
    other["layers"] = {"proj": base(width=8)["layers"]["proj"]}
    with pytest.raises(ValueError, match="another base than the one given") as caught:
        checkpoint.restore(tmp_path / "a", base=other)
    assert "Of 3 leaves 3 differ" in str(caught.value)
    assert "layers/proj: expected float32(2, 7, 11), got float32(2, 8, 11)" in str(caught.value)
    assert "layers/skip: expected float32(5,), but there is no such leaf" in str(caught.value)
    assert "new: not expected, got float32(2,)" in str(caught.value)
    with pytest.raises(ValueError, match=r"out: expected float32\(3, 4, 13\), got bfloat16"):
        checkpoint.restore(tmp_path / "a", base=base("bfloat16"))
    tuned = base() | {"out": base()["out"] * 1.5}
    with pytest.raises(ValueError, match="out: the shape agrees, the values are others"):
        checkpoint.restore(tmp_path / "a", base=tuned)


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
    assert found.pop("key") == {"shape": [], "dtype": "key<fry>", "values": None}
    assert found == checkpoint.fingerprint(base())
    with pytest.raises(ValueError, match=r"key: expected key<fry>\(\), but there is no such leaf"):
        checkpoint.restore(tmp_path / "a", base=base())


def test_a_fingerprint_is_what_it_ever_was():
    """Saved adapters hold it: another hash, or another word for a dtype, would refuse them all."""
    values = np.arange(200).reshape(8, 25)
    leaves = {name: jnp.asarray(values, name) for name in ("float32", "bfloat16", "int32")}
    assert checkpoint.fingerprint(leaves | {"numpy": values.astype(np.float16)}) == {
        "float32": {"shape": [8, 25], "dtype": "float32", "values": "dcf25bd9fe489d3b"},
        "bfloat16": {"shape": [8, 25], "dtype": "bfloat16", "values": "302bedd58b3cb3fb"},
        "int32": {"shape": [8, 25], "dtype": "int32", "values": "a0ccae971a589962"},
        "numpy": {"shape": [8, 25], "dtype": "float16", "values": "4b8a041cc8ac9452"},
    }


def edit(directory, change):
    path = directory / "adapter.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["config"].update(rank=4), "it has rank 3, the configuration says 4"),
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
            "of format version 9: this jlora reads the versions 2 and 3",
        ),
        (lambda d: d.update(format="other"), "describes no jlora adapter"),
        (lambda d: d.pop("leaves"), "adapter.json is damaged: KeyError"),
        (lambda d: d["config"].update(wings=2), "adapter.json is damaged: TypeError"),
        (lambda d: d.update(arrays="arrays-7"), "arrays-7 is damaged, these files are missing"),
    ],
)
def test_a_damaged_adapter_is_one_clear_error(tmp_path, change, message):
    checkpoint.save(tmp_path / "a", adapter(), CONFIG)
    edit(tmp_path / "a", change)
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path / "a")


def test_damaged_files_are_one_clear_error(tmp_path):
    checkpoint.save(tmp_path / "a", adapter(), CONFIG)
    for file in (tmp_path / "a").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-7] + b"garbage")
    with pytest.raises(ValueError, match=r"arrays-1 is damaged.*were changed: d/"):
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


def state():
    lora = adapter()
    tx = jlora.optimizer(optax.adamw(0.1))
    key = jax.random.key_data(jax.random.key(3))
    return {"lora": lora, "opt_state": tx.init(lora), "key": key}


def test_a_run_goes_on_from_its_last_state(tmp_path):
    run = checkpoint.Run(tmp_path / "run", keep=2)
    assert not run.begun
    assert run.latest_step is None
    run.begin({"rank": 3})
    for step in (1, 2, 3):
        run.save(step, jax.tree.map(lambda leaf, step=step: leaf + step, state()))
    again = checkpoint.Run(tmp_path / "run")
    assert again.settings == {"rank": 3}
    step, restored = again.restore(state())
    assert step == 3
    assert_same(restored, jax.tree.map(lambda leaf: leaf + 3, state()))
    kept = sorted(int(entry.name) for entry in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [2, 3]
    again.begin({"rank": 4})
    assert again.latest_step is None


def damages(folder):
    """(name, what damages the folder) for each file in it, and for the folder itself."""
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1]) if content else b"x"
        half = content[: len(content) // 2]
        yield f"{name} with a bit flipped", lambda path=path, to=flipped: path.write_bytes(to)
        yield f"{name} cut", lambda path=path, to=half: path.write_bytes(to)
        yield f"{name} gone", lambda path=path: path.unlink()
    yield "another file", lambda: (folder / "more").write_text("")
    yield "a folder of files that were lost", lambda: shutil.rmtree(folder / "default")


def test_a_damaged_state_is_passed_over_for_the_newest_good_one(tmp_path):
    run = checkpoint.Run(tmp_path / "run", keep=3)
    run.begin({"rank": 3})
    values = {step: {"a": jnp.arange(7.0) * step, "n": jnp.int32(step)} for step in (1, 2, 3)}
    for step, each in values.items():
        run.save(step, each)
    run.close()
    count = len(list(damages(run.directory / "checkpoints" / "3")))
    assert count > 20
    for at in range(count):
        folder = tmp_path / f"damaged-{at}"
        shutil.copytree(run.directory, folder)
        name, damage = list(damages(folder / "checkpoints" / "3"))[at]
        content = (folder / "checkpoints" / "3" / "seal.json").read_bytes()
        damage()
        said = []
        step, got = checkpoint.Run(folder).restore(values[3], say=said.append)
        seal = folder / "checkpoints" / "3" / "seal.json"
        if step == 3:  # nothing but the white space of the seal
            assert "seal.json with a bit flipped" in name
            assert json.loads(seal.read_bytes()) == json.loads(content)
        else:
            assert step == 2, name
            assert len(said) == 1
            assert "the checkpoint of step 3" in said[0]
            assert "going on from the one of step 2" in said[0]
            assert not seal.parent.exists()
        assert_same(got, values[step])


def test_states_that_changed_places_are_not_taken_for_each_other(tmp_path):
    runs = [checkpoint.Run(tmp_path / name) for name in ("one", "other")]
    value = {"a": jnp.arange(7.0)}
    for rank, run in enumerate(runs):
        run.begin({"rank": rank})
        run.save(1, value)
        run.save(2, value)
        run.close()
    one, other = (run.directory / "checkpoints" for run in runs)
    shutil.rmtree(one / "2")
    shutil.copytree(one / "1", one / "2")
    shutil.rmtree(other / "1")
    shutil.copytree(one / "1", other / "1")
    said = []
    assert checkpoint.Run(runs[0].directory).restore(value, say=said.append)[0] == 1
    assert "(it is the state of step 1)" in said[0]
    shutil.rmtree(other / "2")
    with pytest.raises(ValueError, match=r"every checkpoint .* step 1: it is another run's"):
        checkpoint.Run(runs[1].directory).restore(value)


def test_a_folder_is_held_by_one_process_and_free_once_it_died(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys, time; from jlora import checkpoint\n"
        "with checkpoint.Run(sys.argv[1]).locked():\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"is being written by process {process.pid} on "),
            checkpoint.Run(folder).locked(),
        ):
            pass
        process.kill()
    run = checkpoint.Run(folder)
    with run.locked():
        run.claim()
        run.begin({})
    assert run.begun
    with checkpoint.Run(tmp_path / "unused" / "run").locked():
        pass
    assert not (tmp_path / "unused" / "run").exists()


def test_a_state_older_than_the_last_is_not_written(tmp_path):
    run = checkpoint.Run(tmp_path)
    run.begin({})
    value = {"a": jnp.arange(7.0)}
    for step in (3, 2):
        run.save(step, {"a": step * value["a"]})
    step, got = run.restore(value)
    assert step == 3
    assert_same(got, {"a": 3 * value["a"]})


def test_what_an_interrupted_start_left_is_in_nobodys_way(tmp_path):
    (tmp_path / ".run.json.4711").write_text("{")
    checkpoint.Run(tmp_path).claim()


def test_a_run_of_a_newer_version_is_refused(tmp_path):
    run = checkpoint.Run(tmp_path)
    run.begin({"rank": 3})
    (tmp_path / "run.json").write_text('{"format": 3}')
    with pytest.raises(ValueError, match=r"format version 3: this jlora reads versions up to 2"):
        _ = run.settings


def test_a_folder_that_is_taken_is_told_in_the_librarys_own_words(tmp_path):
    run = checkpoint.Run(tmp_path / "run")
    with pytest.raises(ValueError, match="holds no run to go on with") as none:
        _ = run.settings
    run.claim()
    run.begin({"rank": 3})
    with pytest.raises(ValueError, match=r"another folder, or overwrite=True to replace it") as one:
        run.claim()
    run.claim(overwrite=True)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty and holds no run: .* overwrite=True") as other:
        checkpoint.Run(tmp_path).claim()
    assert not any("--" in str(each.value) for each in (none, one, other))


def test_a_state_of_another_adapter_is_refused(tmp_path):
    run = checkpoint.Run(tmp_path)
    with pytest.raises(ValueError, match="holds no checkpoint to go on from"):
        run.restore(state())
    run.begin({})
    run.save(1, state())
    other = state()
    del other["lora"]["out"]
    with pytest.raises(ValueError, match="lora/out/a: not expected"):
        run.restore(other)
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        _ = run.settings


def test_saving_and_restoring_keep_the_terminal_clean(tmp_path):
    code = f"""
import jax, jlora
from jlora import checkpoint
config = jlora.LoraConfig(targets="w", rank=2)
frozen, lora = jlora.split({{"w": jax.numpy.ones((7, 5))}}, config, jax.random.key(0))
checkpoint.save({str(tmp_path / "a")!r}, lora, config, base=frozen)
checkpoint.restore({str(tmp_path / "a")!r}, base=frozen)
run = checkpoint.Run({str(tmp_path / "run")!r})
run.begin({{}})
run.save(1, lora)
checkpoint.Run({str(tmp_path / "run")!r}).restore(lora)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("size", [10, 100])
def test_a_disk_that_fills_is_said_and_costs_nothing_that_was_saved(tmp_path, size):
    first = adapter()
    checkpoint.save(tmp_path / "a", first, CONFIG, base=base())
    run = checkpoint.Run(tmp_path / "run")
    run.begin({"rank": 3})
    run.save(1, first)
    run.record("results", {"loss": 1.5})
    later = jax.tree.map(noisy, first)
    with no_file_longer_than(size):
        with pytest.raises(OSError, match=r"could not be written"):
            checkpoint.save(tmp_path / "a", later, CONFIG, base=base(), overwrite=True)
        with pytest.raises(OSError, match=r"run/checkpoints/2 could not be written"):
            run.save(2, later)
        with pytest.raises(OSError, match=r"results\.json could not be written"):
            run.record("results", {"answers": ["long"] * 1000})
    assert_same(checkpoint.restore(tmp_path / "a", base=base())[0], first)
    again = checkpoint.Run(tmp_path / "run")
    step, state = again.restore(later)
    assert step == 1
    assert_same(state, first)
    assert again.recorded("results") == {"loss": 1.5}
    again.save(2, later)
    assert again.latest_step == 2
    checkpoint.save(tmp_path / "a", later, CONFIG, base=base(), overwrite=True)
    assert_same(checkpoint.restore(tmp_path / "a")[0], later)
