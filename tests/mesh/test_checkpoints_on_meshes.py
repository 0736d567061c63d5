"""Adapters that lie on one mesh are saved, and come back on another; bases are known again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import adapted, assert_close
from on_meshes import assert_equal, devices, normal

import jlora
from jlora import checkpoint
from jlora.checkpoint import _position_sums

PARAMS = {
    "table": normal(40, 24, seed=1),
    "layers": {"up": normal(8, 24, 16, seed=2), "norm": jnp.ones((8, 24))},
    "half": normal(16, 40, seed=3).astype(jnp.bfloat16),
}
LAYOUTS = {
    "table": ("model", "data"),
    "layers": {"up": (None, "data", "model"), "norm": (None, None)},
    "half": (("data", "model"), None),
}
AXES = {
    "table": jlora.Axes(),
    "layers/up": jlora.Axes((1,), (2,), (0,)),
    "half": jlora.Axes((1,), (0,)),
}
CONFIG = jlora.LoraConfig(targets="table|up|half", rank=4, alpha=5.0, method="dora")


def adapter():
    return adapted(PARAMS, AXES, targets=CONFIG.targets, rank=4, alpha=5.0, method="dora")


def on_the_mesh(on):
    """(frozen, lora), both laid out on it."""
    frozen, lora = adapter()
    placed = on.put(frozen, LAYOUTS)
    return placed, jax.device_put(lora, jlora.shardings(placed, lora))


@pytest.mark.parametrize("at_once", [0, _position_sums._AT_ONCE], ids=["device", "host"])
def test_a_fingerprint_is_that_of_one_device(on, monkeypatch, at_once):
    want = checkpoint.fingerprint(PARAMS)
    monkeypatch.setattr(_position_sums, "_AT_ONCE", at_once)
    placed = on.put(PARAMS, LAYOUTS)
    assert checkpoint.fingerprint(placed) == want
    with jax.set_mesh(on.mesh):
        assert checkpoint.fingerprint(placed) == want
        assert checkpoint.fingerprint(on.replicated(PARAMS)) == want


def test_a_fingerprint_tells_values_apart(on):
    placed = on.put(PARAMS, LAYOUTS)
    other = placed | {"table": on.put(PARAMS["table"] + 1, LAYOUTS["table"])}
    with jax.set_mesh(on.mesh):
        differing = checkpoint.differences(
            checkpoint.fingerprint(placed), checkpoint.fingerprint(other)
        )
    assert [line.partition(":")[0] for line in differing] == ["table"]


@pytest.mark.parametrize("layout", [("data", None), (None, "model"), (("model", "data"), None)])
def test_a_fingerprint_is_that_of_one_device_in_every_layout(on, monkeypatch, layout):
    table = PARAMS["table"].at[17, 5].set(0.5)
    want = checkpoint.fingerprint({"table": table})
    monkeypatch.setattr(_position_sums, "_AT_ONCE", 0)
    assert checkpoint.fingerprint({"table": on.put(table, layout)}) == want
    other = checkpoint.fingerprint({"table": on.put(table.at[17, 5].set(0.25), layout)})
    assert len(checkpoint.differences(want, other)) == 1


def test_saved_and_restored_on_the_same_mesh(on, tmp_path):
    placed, lora = on_the_mesh(on)
    with jax.set_mesh(on.mesh):
        checkpoint.save(tmp_path / "adapter", lora, CONFIG)
        again, config = checkpoint.restore(
            tmp_path / "adapter", shardings=jlora.shardings(placed, lora)
        )
    assert config == CONFIG
    check_restored(again, lora)


NEXT = [("2x4", "8"), ("8", "2x4"), ("2x4 auto", "8"), ("8", "2x4 auto"), ("2 auto x 4", "8 auto")]


@pytest.mark.parametrize(("before", "after"), NEXT, ids=map(" then ".join, NEXT))
def test_restored_on_another_mesh_and_then_on_one_device(before, after, tmp_path):
    before, after = devices(before), devices(after)
    placed, lora = on_the_mesh(before)
    with jax.set_mesh(before.mesh):
        checkpoint.save(tmp_path / "first", lora, CONFIG, base=placed)
    placed = after.put(PARAMS, LAYOUTS)
    with jax.set_mesh(after.mesh):
        wanted = jlora.shardings(placed, checkpoint.outline(tmp_path / "first")[0])
        moved, _ = checkpoint.restore(tmp_path / "first", base=placed, shardings=wanted)
        checkpoint.save(tmp_path / "second", moved, CONFIG, base=placed)
    check_restored(moved, lora, wanted)
    again, config = checkpoint.restore(tmp_path / "second", base=PARAMS)
    assert config == CONFIG
    assert_equal(again, adapter()[1])
    assert {leaf.device for leaf in jax.tree.leaves(again)} == {jax.devices()[0]}


def test_another_base_is_refused_on_the_mesh(on, tmp_path):
    placed, lora = on_the_mesh(on)
    other = placed | {"half": on.put(PARAMS["half"] * 2, LAYOUTS["half"])}
    checkpoint.save(tmp_path / "adapter", adapter()[1], CONFIG, base=PARAMS)
    with jax.set_mesh(on.mesh):
        places = jlora.shardings(placed, lora)
        checkpoint.restore(tmp_path / "adapter", base=placed, shardings=places)
        with pytest.raises(ValueError, match="half: the shape agrees, the values are others"):
            checkpoint.restore(tmp_path / "adapter", base=other, shardings=places)


def test_restored_without_a_word_of_places_it_works_beside_its_base(on, tmp_path):
    """An adapter from a file and weights on a mesh meet in one jitted function."""
    frozen = {"w": normal(24, 40, seed=4)}
    _, lora = adapted(frozen, rank=4, alpha=5.0)
    config = jlora.LoraConfig(targets=".", rank=4, alpha=5.0)
    checkpoint.save(tmp_path / "adapter", lora, config, base=frozen)
    want = jlora.merge(frozen, lora)
    placed = on.put(frozen, {"w": ("data", "model")})
    with jax.set_mesh(on.mesh):
        again, _ = checkpoint.restore(tmp_path / "adapter", base=placed)
        product = jax.jit(jlora.lift(lambda p, x: x @ p["w"], strict=True))(
            placed, again, np.eye(24)
        )
        assert_close(jlora.merge(placed, again), want)
    assert_close(product, want["w"])


def check_restored(got, want, places=None):
    assert_equal(got, want)
    places = places or jax.tree.map(lambda leaf: leaf.sharding, want)
    for leaf, place in zip(jax.tree.leaves(got), jax.tree.leaves(places), strict=True):
        assert leaf.sharding == place
