"""Two hundred damages to what lies on disk: none is read as something else, none is a traceback."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora import checkpoint, trainer

CONFIG = jlora.LoraConfig(targets="proj|out", rank=3, alpha=5.0)
BASE = {"proj": jax.random.normal(jax.random.key(0), (7, 5)), "out": jnp.ones((5, 11))}


def flipped(path, rng):
    content = bytearray(path.read_bytes() or b"x")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) or 1)])


def gone(path, rng):
    path.unlink()


def emptied(path, rng):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = (flipped, flipped, flipped, cut, gone, emptied)


def damaged(folder, rng):
    """Damages a file in the folder, or two; says how."""
    told = []
    for _ in range(rng.choice((1, 1, 2))):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        file, damage = rng.choice(files), rng.choice(DAMAGES)
        damage(file, rng)
        told.append(f"{file.relative_to(folder)} {damage.__name__}")
    return ", ".join(told)


def same(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)
    )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders of two adapters of one structure, and the first of them."""
    folder = tmp_path_factory.mktemp("adapters")
    frozen, lora = jlora.split(BASE, CONFIG, jax.random.key(1))
    checkpoint.save(folder / "one", lora, CONFIG, base=frozen, metadata={"model": "mine"})
    other = jax.tree.map(lambda leaf: leaf + 1, lora)
    checkpoint.save(folder / "other", other, CONFIG, base=frozen)
    return folder, lora


def read(folder):
    """The adapter, or None where it is refused."""
    try:
        lora, config = checkpoint.restore(folder, base=BASE)
        return lora, config, checkpoint.describe(folder)["metadata"]
    except (ValueError, OSError):
        return None


@pytest.mark.parametrize("seed", range(100))
def test_a_damaged_adapter_is_refused_or_what_was_saved(adapters, tmp_path, seed):
    folder, lora = adapters
    shutil.copytree(folder / "one", tmp_path / "a")
    told = damaged(tmp_path / "a", random.Random(seed))
    if got := read(tmp_path / "a"):
        assert same(got[0], lora), told
        assert got[1:] == (CONFIG, {"model": "mine"}), told


@pytest.mark.parametrize("name", ["arrays-1", "adapter.json"])
def test_an_adapter_of_parts_of_two_is_refused(adapters, tmp_path, name):
    folder, _ = adapters
    shutil.copytree(folder / "one", tmp_path / "a")
    part = tmp_path / "a" / name
    if part.is_dir():
        shutil.rmtree(part)
        shutil.copytree(folder / "other" / name, part)
    else:
        shutil.copyfile(folder / "other" / name, part)
    assert read(tmp_path / "a") is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = trainer.Run(tmp_path_factory.mktemp("runs") / "run")
    run.begin({"rank": 3})
    for step in (1, 2):
        run.save(step, value(step), notes={"loss": step / 7}, best=step == 1)
    return run


def value(step):
    return {"a": jnp.arange(35.0).reshape(5, 7) * step, "n": jnp.int32(step)}


@pytest.mark.parametrize("seed", range(100))
def test_a_damaged_state_is_passed_over_or_what_was_saved(run, tmp_path, seed):
    shutil.copytree(run.directory, tmp_path / "run")
    told = damaged(tmp_path / "run" / "checkpoints" / "2", random.Random(seed))
    said = []
    step, state, notes = trainer.Run(tmp_path / "run").restore(value(0), say=said.append)
    assert len(said) == (step == 1), told
    assert same(state, value(step)), told
    assert notes == {"loss": step / 7}, told
