"""What earlier versions of jlora wrote is read: their files lie in an archive beside this test.

They were made of a tree like `PARAMS`, each array filled with its number among its adapter's plus
0, 1/8, 2/8 and so on.
"""

import pathlib
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import checkpoint, trainer

HERE = pathlib.Path(__file__).parent
# 0.1.0 wrote versions 1 of a run and 2 of an adapter; before 0.2.0 came 2 and 3, without sums.
ARCHIVES = ("jlora-0.1.0.zip", "jlora-run-2-adapter-3.zip")
PARAMS = {
    "embed": {"embedding": jnp.zeros((5, 3))},
    "layers": {"kernel": jnp.zeros((2, 3, 4)), "bias": jnp.zeros((2, 4))},
    "head": {"kernel": jnp.zeros((4, 5))},
}
AXES = {"layers/kernel": jlora.Axes((1,), (2,), (0,)), "head/kernel": jlora.Axes()}
CONFIGS = {
    "lora": jlora.LoraConfig(
        targets="layers/kernel",
        rank=2,
        alpha=3.0,
        rslora=True,
        rank_pattern={"layers": (1, 2)},
        dropout=0.25,
        bias="lora",
        train="head",
        tokens={"embed": (1, 4)},
    ),
    "dora": jlora.LoraConfig(
        targets=("^head/kernel$", "^layers/kernel$"),
        rank=2,
        alpha=16.0,
        alpha_pattern={"head": 5.0},
        method="dora",
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    for name in ARCHIVES:
        with zipfile.ZipFile(HERE / name) as archive:
            archive.extractall(folder)
    return folder


def filled(lora):
    """The adapter with the values that were written."""
    leaves, structure = jax.tree.flatten(lora)
    values = [
        (number + jnp.arange(leaf.size).reshape(leaf.shape) / 8).astype(leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, values)


@pytest.mark.parametrize("version", ["-0.1.0", ""])
@pytest.mark.parametrize("method", CONFIGS)
def test_an_adapter_is_what_split_makes_today(written, method, version):
    lora, config = checkpoint.restore(written / f"adapter-{method}{version}")
    assert config == CONFIGS[method]
    _, today = jlora.split(PARAMS, config, jax.random.key(0), axes=AXES)
    rates = {path: node.dropout for path, node in today.items() if hasattr(node, "dropout")}
    without = {
        path: node if rates.get(path) is None else jlora.LoraWeight(
            node.a, node.b, node.scaling, node.axes
        )
        for path, node in today.items()
    }  # fmt: skip
    want = filled(without)
    for path, node in lora.items():
        for name in node.dimensions().keys() - {"dropout"}:
            got = np.asarray(getattr(node, name))
            np.testing.assert_array_equal(got, getattr(want[path], name), err_msg=f"{path} {name}")
        assert type(node) is type(today[path])
    if method == "lora":  # then a number of the class, now an array
        assert float(lora["layers/kernel"].dropout) == 0.25
    assert jax.tree.structure(lora) == jax.tree.structure(today)
    merged = jlora.merge(PARAMS, lora)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, PARAMS)


def test_its_base_is_known_by_a_few_values_of_each_leaf(written):
    checkpoint.restore(written / "adapter-lora", base=PARAMS)
    other = PARAMS | {"embed": {"embedding": jnp.ones((5, 3))}}
    for version in ("-0.1.0", ""):
        with pytest.raises(ValueError, match="embed/embedding: the shape agrees, the values are"):
            checkpoint.restore(written / f"adapter-lora{version}", base=other)


@pytest.mark.parametrize("version", ["-0.1.0", ""])
def test_a_run_goes_on(written, tmp_path, version):
    shutil.copytree(written / f"run{version}", tmp_path / "run")
    run = trainer.Run(tmp_path / "run", keep=1)
    assert run.settings == {"rank": 2}
    assert run.recorded("results") == {"loss": 1.5}
    _, lora = jlora.split(PARAMS, CONFIGS["dora"], jax.random.key(0), axes=AXES)
    like = {
        "lora": lora,
        "opt_state": jlora.optimizer(optax.adam(1e-3)).init(lora),
        "key": jax.random.key_data(jax.random.key(3)),
    }
    step, state, notes = run.restore(like)
    assert (step, notes) == (7, {})
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, filled(state)))
    run.save(9, state, notes={"loss": 0.5})
    assert [path.name for path in (run.directory / "checkpoints").iterdir()] == ["9"]
    assert run.restore(like)[::2] == (9, {"loss": 0.5})


def test_a_damaged_state_without_notes_is_passed_over(written, tmp_path):
    shutil.copytree(written / "run", tmp_path / "run")
    run = trainer.Run(tmp_path / "run")
    (run.directory / "checkpoints" / "7" / "default" / "_METADATA").unlink()
    _, lora = jlora.split(PARAMS, CONFIGS["dora"], jax.random.key(0), axes=AXES)
    tx = jlora.optimizer(optax.adam(1e-3))
    key = jax.random.key_data(jax.random.key(3))
    like = {"lora": lora, "opt_state": tx.init(lora), "key": key}
    assert run.restore(like, say=[].append)[0] == 5
