"""What earlier versions of jlora wrote is read: their files lie in an archive beside this test.

They were made of a tree like `PARAMS`, each array filled with its number among its adapter's plus
0, 1/8, 2/8 and so on.
"""

import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import checkpoint

ARCHIVE = pathlib.Path(__file__).parent / "jlora-0.1.0.zip"
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
    with zipfile.ZipFile(ARCHIVE) as archive:
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


@pytest.mark.parametrize("method", CONFIGS)
def test_an_adapter_is_what_split_makes_today(written, method):
    lora, config = checkpoint.restore(written / f"adapter-{method}-0.1.0")
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


def test_a_run_goes_on(written):
    run = checkpoint.Run(written / "run-0.1.0")
    assert run.settings == {"rank": 2}
    assert run.recorded("results") == {"loss": 1.5}
    _, lora = jlora.split(PARAMS, CONFIGS["dora"], jax.random.key(0), axes=AXES)
    state = {
        "lora": lora,
        "opt_state": jlora.optimizer(optax.adam(1e-3)).init(lora),
        "key": jax.random.key_data(jax.random.key(3)),
    }
    step, state = run.restore(state)
    run.close()
    assert step == 7
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, filled(state)))
