"""A run's folder: its states, sealed and kept, its records, its lock."""

import errno
import json
import math
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import _sealed_json, trainer
from jlora.trainer import _states


def state():
    """A run's, as `train.py` saves it."""
    params = {"out": jnp.ones((5, 7)), "proj": jnp.ones((7, 3))}
    _, lora = jlora.split(params, jlora.LoraConfig(targets="proj|out", rank=3), jax.random.key(1))
    tx = jlora.optimizer(optax.adamw(0.1))
    key = jax.random.key_data(jax.random.key(3))
    return {"lora": lora, "opt_state": tx.init(lora), "key": key}


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def begun(folder, **options):
    run = trainer.Run(folder, **options)
    run.begin({"rank": 3})
    return run


def steps(run):
    return sorted(int(path.name) for path in (run.directory / "checkpoints").iterdir())


def test_a_run_goes_on_from_its_last_state(tmp_path):
    run = trainer.Run(tmp_path / "run", keep=2)
    assert not run.begun
    assert run.latest_step is None
    run.begin({"rank": 3})
    for step in (1, 2, 3):
        run.save(step, jax.tree.map(lambda leaf, step=step: leaf + step, state()))
    again = trainer.Run(tmp_path / "run")
    assert again.settings == {"rank": 3}
    step, restored, notes = again.restore(state())
    assert (step, notes) == (3, {})
    assert_same(restored, jax.tree.map(lambda leaf: leaf + 3, state()))
    assert steps(run) == [2, 3]
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
    yield "all of it lost but its name", lambda: (shutil.rmtree(folder), folder.mkdir())


def test_a_damaged_state_is_passed_over_for_the_newest_good_one(tmp_path):
    run = trainer.Run(tmp_path / "run", keep=3)
    run.begin({"rank": 3})
    values = {step: {"a": jnp.arange(7.0) * step, "n": jnp.int32(step)} for step in (1, 2, 3)}
    for step, each in values.items():
        run.save(step, each)
    count = len(list(damages(run.directory / "checkpoints" / "3")))
    assert count > 20
    for at in range(count):
        folder = tmp_path / f"damaged-{at}"
        shutil.copytree(run.directory, folder)
        name, damage = list(damages(folder / "checkpoints" / "3"))[at]
        content = (folder / "checkpoints" / "3" / "seal.json").read_bytes()
        damage()
        said = []
        step, got, _ = trainer.Run(folder).restore(values[3], say=said.append)
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
    runs = [trainer.Run(tmp_path / name) for name in ("one", "other")]
    value = {"a": jnp.arange(7.0)}
    for rank, run in enumerate(runs):
        run.begin({"rank": rank})
        run.save(1, value)
        run.save(2, value)
        one, other = (run.directory / "checkpoints" for run in runs)
    shutil.rmtree(one / "2")
    shutil.copytree(one / "1", one / "2")
    shutil.rmtree(other / "1")
    shutil.copytree(one / "1", other / "1")
    said = []
    assert trainer.Run(runs[0].directory).restore(value, say=said.append)[0] == 1
    assert "(it is the state of step 1)" in said[0]
    shutil.rmtree(other / "2")
    with pytest.raises(ValueError, match=r"every checkpoint .* step 1: it is another run's"):
        trainer.Run(runs[1].directory).restore(value)


def test_a_folder_is_held_by_one_process_and_free_once_it_died(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys, time; from jlora import trainer\n"
        "with trainer.Run(sys.argv[1]).locked():\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"is being written by process {process.pid} on "),
            trainer.Run(folder).locked(),
        ):
            pass
        process.kill()
    run = trainer.Run(folder)
    with run.locked():
        run.claim()
        run.begin({})
    assert run.begun
    with trainer.Run(tmp_path / "unused" / "run").locked():
        pass
    assert not (tmp_path / "unused" / "run").exists()


def test_a_state_older_than_the_last_is_not_written(tmp_path):
    run = trainer.Run(tmp_path)
    run.begin({})
    value = {"a": jnp.arange(7.0)}
    for step in (3, 2):
        run.save(step, {"a": step * value["a"]})
    step, got, _ = run.restore(value)
    assert step == 3
    assert_same(got, {"a": 3 * value["a"]})


def test_the_best_and_the_newest_states_are_kept_with_their_notes(tmp_path):
    run = begun(tmp_path, keep=2)
    value = {"a": jnp.arange(7.0)}
    for step, loss in {9: 4.0, 10: 3.0, 11: 5.0, 100: 6.0, 101: 7.0}.items():
        run.save(step, {"a": step * value["a"]}, notes={"loss": loss}, best=loss < 5)
    assert steps(run) == [10, 100, 101]
    assert (run.best_step, run.latest_step) == (10, 101)
    for wanted, step, loss in ((None, 101, 7.0), (run.best_step, 10, 3.0)):
        number, got, notes = run.restore(value, wanted)
        assert (number, notes) == (step, {"loss": loss})
        assert_same(got, {"a": step * value["a"]})
    run.save(102, value, best=True)
    assert steps(run) == [101, 102]
    with pytest.raises(ValueError, match="no checkpoint of step 10: there are those of 101, 102"):
        run.restore(value, 10)


def test_a_state_that_can_not_be_written_is_an_error_and_costs_none_that_was(tmp_path, monkeypatch):
    run = begun(tmp_path, keep=1)
    value = {"a": jnp.arange(7.0)}
    run.save(1, value, best=True)
    run.save(2, value)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for room, name in ((_states._arrays, "write"), (_states._sealed_states, "seal")):
        with monkeypatch.context() as patch:
            patch.setattr(room, name, full)
            with pytest.raises(OSError, match=r"checkpoints/3 could not be written: No space"):
                run.save(3, value)
        assert steps(run) == [1, 2]
        assert run.restore(value)[0] == 2


def test_what_is_noted_later_of_a_step_is_added(tmp_path):
    run = begun(tmp_path)
    value = {"a": jnp.arange(7.0)}
    run.save(3, value, notes={"patience": 2})
    run.save(3, value, notes={"loss": 0.5}, best=True)
    run.save(3, value)
    assert run.best_step == 3
    assert run.restore(value)[2] == {"patience": 2, "loss": 0.5}
    with pytest.raises(ValueError, match="the notes can't be written as JSON"):
        run.save(4, value, notes={"loss": math.nan})
    assert run.latest_step == 3


def test_a_damaged_best_state_is_passed_over_for_the_newest(tmp_path):
    run = begun(tmp_path, keep=1)
    value = {"a": jnp.arange(7.0)}
    run.save(1, value, best=True)
    run.save(2, value)
    (tmp_path / "checkpoints" / "1" / "default" / "_METADATA").unlink()
    said = []
    assert run.restore(value, run.best_step, say=said.append)[0] == 2
    assert "the checkpoint of step 1" in said[0]
    assert run.best_step is None


def test_a_state_of_another_run_is_never_deleted(tmp_path):
    run, other = begun(tmp_path / "run", keep=1), begun(tmp_path / "other")
    value = {"a": jnp.arange(7.0)}
    other.save(2, value)
    (run.directory / "checkpoints").mkdir()
    shutil.copytree(other.directory / "checkpoints" / "2", run.directory / "checkpoints" / "2")
    assert run.latest_step is None
    for step in (1, 2, 3):
        run.save(step, value)
    names = sorted(path.name for path in (run.directory / "checkpoints").iterdir())
    assert names == ["2-of-another-run", "3"]


def test_a_run_that_is_replaced_leaves_nothing_to_the_next(tmp_path):
    run = begun(tmp_path)
    value = {"a": jnp.arange(7.0)}
    run.save(1, value)
    run.record("results", {"loss": 1.5})
    (tmp_path / "mine.json").write_text('{"run": "of horses"}')
    results = (tmp_path / "results.json").read_bytes()
    run.begin({"rank": 4})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "run.json"]
    (tmp_path / "results.json").write_bytes(results)  # as if killed before it was deleted
    assert (run.recorded("results"), run.latest_step) == (None, None)


def test_a_record_holds_no_number_that_json_has_no_word_for(tmp_path):
    run = begun(tmp_path)
    run.record("results", {"before": {"loss": math.nan, "rows": [1.0, math.inf]}})
    assert run.recorded("results") == {"before": {"loss": None, "rows": [1.0, None]}}
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    (tmp_path / "results.json").write_text(text.replace("1.0", "2.0"))
    with pytest.raises(ValueError, match=r"results\.json is damaged: it is not what was written"):
        run.recorded("results")


def test_what_an_interrupted_start_left_is_in_nobodys_way(tmp_path):
    (tmp_path / ".run.json.4711").write_text("{")
    trainer.Run(tmp_path).claim()


def test_a_start_that_was_killed_blocks_no_other(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import os, pathlib, sys; from jlora import trainer\n"
        "with trainer.Run(sys.argv[1]).locked():\n"
        "    pathlib.Path(sys.argv[1], 'rows').mkdir()\n"
        "    pathlib.Path(sys.argv[1], 'rows', f'.7.jsonl.{os.getpid()}').touch()\n"
        "    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)]).returncode == -9
    with trainer.Run(folder).locked():
        pass  # it fails, too
    run = trainer.Run(folder)
    with run.locked():
        run.claim()
        run.begin({})
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
    (folder / "run.json").unlink()
    with run.locked(), pytest.raises(ValueError, match="is not empty and holds no run"):
        run.claim()  # what is there now is a run's


def test_what_a_newer_jlora_wrote_is_refused_in_one_line(tmp_path):
    run = begun(tmp_path)
    value = {"a": jnp.arange(7.0)}
    run.save(1, value)
    run.record("results", {"loss": 1.5})
    files = {
        "checkpoints/1/seal.json": lambda: run.restore(value),
        "results.json": lambda: run.recorded("results"),
        "run.json": lambda: run.settings,
    }
    for name, read in files.items():
        told = json.loads((tmp_path / name).read_text())
        version = told.pop("version") + 1
        del told["sum"]
        _sealed_json.write(tmp_path / name, told, version=version)
        with pytest.raises(ValueError, match=rf"{name} was written by a newer jlora: .*{version}"):
            read()
    assert (tmp_path / "checkpoints" / "1").exists()
    (tmp_path / "run.json").write_text('{"format": 4}')
    with pytest.raises(ValueError, match=r"run\.json was written by a newer jlora"):
        _ = run.settings


def test_settings_that_were_changed_are_not_read(tmp_path):
    run = begun(tmp_path)
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace('"rank": 3', '"rank": 4'))
    with pytest.raises(ValueError, match=r"run\.json is damaged: it is not what was written"):
        _ = run.settings


def test_a_folder_that_is_taken_is_told_in_the_librarys_own_words(tmp_path):
    run = trainer.Run(tmp_path / "run")
    with pytest.raises(ValueError, match="holds no run to go on with") as none:
        _ = run.settings
    run.claim()
    run.begin({"rank": 3})
    with pytest.raises(ValueError, match=r"another folder, or overwrite=True to replace it") as one:
        run.claim()
    run.claim(overwrite=True)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty and holds no run: .* overwrite=True") as other:
        trainer.Run(tmp_path).claim()
    assert not any("--" in str(each.value) for each in (none, one, other))


def test_a_state_of_another_adapter_is_refused(tmp_path):
    run = trainer.Run(tmp_path)
    with pytest.raises(ValueError, match="holds no checkpoint to go on from"):
        run.restore(state())
    run.begin({})
    run.save(1, state())
    other = state()
    del other["lora"]["out"]
    with pytest.raises(ValueError, match="lora/out/a: not expected"):
        run.restore(other)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        _ = run.settings
    with pytest.raises(ValueError, match="keep is 0: expected at least 1"):
        trainer.Run(tmp_path, keep=0)
