"""A and B start as on one device, however their weights are split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import on_meshes
import pytest
from laws import assert_close
from on_meshes import ONE, assert_equal, check_runs, normal

import jlora

KEY = jax.random.key(5)
# Split along both dimensions, along inputs by all axes, along outputs, along heads, along layers.
PARAMS = {
    "both": normal(24, 40, seed=1),
    "inputs": normal(40, 16, seed=2),
    "outputs": normal(16, 24, seed=3),
    "heads": normal(16, 8, 5, seed=5),
    "layers": normal(8, 16, 24, seed=6),
}
LAYOUTS = {
    "both": ("data", "model"),
    "inputs": (("data", "model"), None),
    "outputs": (None, "model"),
    "heads": (None, "model", None),
    "layers": ("model", None, "data"),
}
AXES = dict.fromkeys(PARAMS, jlora.Axes()) | {
    "heads": jlora.Axes((0,), (1, 2)),
    "layers": jlora.Axes((1,), (2,), (0,)),
}
RANDOM = ("kaiming", "gaussian", "orthogonal")
DECOMPOSED = ("pissa", "pissa_niter_4", "olora")


def split(params, init, method="lora"):
    config = jlora.LoraConfig(targets=".", rank=4, alpha=6.0, init=init, method=method)
    return jlora.split(params, config, KEY, axes=AXES)


@functools.cache
def on_one_device(init, method="lora"):
    return split(PARAMS, init, method)


@on_meshes.ONE_OF_EACH_KIND
@pytest.mark.parametrize("init", RANDOM)
def test_random_starts_are_those_of_one_device(on, init):
    frozen, lora = on_one_device(init)
    placed = on.put(PARAMS, LAYOUTS)
    with jax.set_mesh(on.mesh):
        got_frozen, got = split(placed, init)
    assert_equal(got_frozen, frozen)
    assert_close(got, lora)


@pytest.mark.parametrize("init", DECOMPOSED)
def test_decompositions_of_split_weights_are_those_of_one_device(on, init):
    placed = on.put(PARAMS, LAYOUTS)
    want = on_one_device(init)
    with jax.set_mesh(on.mesh):
        got = split(placed, init)
    assert_close(got, want, 1e-4)
    for path, leaf in got[0].items():
        assert leaf.sharding.is_equivalent_to(placed[path].sharding, leaf.ndim), path


@on_meshes.ONE_OF_EACH_KIND
@pytest.mark.parametrize("init", ["kaiming", "pissa"])
def test_magnitudes_are_those_of_one_device(on, init):
    want = on_one_device(init, "dora")
    placed = on.put(PARAMS, LAYOUTS)
    with jax.set_mesh(on.mesh):
        got = split(placed, init, "dora")
    assert_close(got, want, 1e-4)


@on_meshes.ONE_OF_EACH_KIND
@pytest.mark.parametrize("init", ["kaiming", "orthogonal"])
def test_a_start_made_in_shards_is_that_of_one_device(on, init):
    """Under jit each device makes its own part: they differ, with the bounds of the whole."""
    _, lora = on_one_device(init)
    placed = on.put(PARAMS, LAYOUTS)
    with jax.set_mesh(on.mesh):
        layout = jlora.shardings(placed, lora)
        made = jax.jit(lambda params: split(params, init)[1], out_shardings=layout)(placed)
    for path, node in made.items():
        parts = {str(shard.index): np.asarray(shard.data) for shard in node.a.addressable_shards}
        parts = list(parts.values())
        for at, part in enumerate(parts):
            assert not any(np.array_equal(part, other) for other in parts[:at]), path
        assert node.a.sharding.is_equivalent_to(layout[path].a, node.a.ndim)
    assert_close(made, lora)
    if init == "kaiming":
        largest = float(jnp.abs(np.asarray(made["inputs"].a)).max())
        assert 0.9 * 40**-0.5 < largest <= 40**-0.5


def model(on):
    """The leaves of PARAMS that are matrices, one after the other, and a batch that is split."""

    def fn(p, x):
        hidden = jnp.einsum("bi,ih->bh", x, p["both"], out_sharding=on.told("data", "model"))
        hidden = jnp.einsum(
            "bh,ho->bo", jnp.tanh(hidden), p["inputs"], out_sharding=on.told("data", None)
        )
        return jnp.einsum(
            "bi,io->bo", jnp.tanh(hidden), p["outputs"], out_sharding=on.told("data", "model")
        )

    return fn


MATRICES = {path: PARAMS[path] for path in ("both", "inputs", "outputs")}
BATCHES = [normal(16, 24, seed=seed, scale=1.0) * jnp.linspace(2, 0.1, 24) for seed in (7, 8)]
CONFIG = jlora.LoraConfig(targets=".", rank=4, alpha=6.0)


def from_activations(on, frozen, lora, batches):
    return jlora.eva(model(on), frozen, lora, batches, CONFIG, KEY)


def from_gradients(on, frozen, lora, batches):
    def loss(params, x):
        return (model(on)(params, x) ** 2).mean()

    return jlora.lora_ga(loss, frozen, lora, batches, CONFIG, KEY)


@functools.cache
def from_data_on_one_device(start):
    return start(ONE, *jlora.split(MATRICES, CONFIG, KEY), BATCHES)


@on_meshes.ONE_OF_EACH_KIND
@pytest.mark.parametrize("start", [from_activations, from_gradients])
def test_starts_from_data_are_those_of_one_device(on, start):
    *want, its_config = from_data_on_one_device(start)
    placed = on.put(MATRICES, {path: LAYOUTS[path] for path in MATRICES})
    batches = [on.put(batch, ("data", None)) for batch in BATCHES]
    with jax.set_mesh(on.mesh):
        check_runs(model(on), placed, batches[0])
        *got, config = start(on, *jlora.split(placed, CONFIG, KEY), batches)
    assert config == its_config  # with the ranks
    assert_close(got, want, 1e-3)
    for path, leaf in got[0].items():
        assert leaf.sharding.is_equivalent_to(placed[path].sharding, leaf.ndim), path
