"""The laws on a mesh of one device, and what `shardings` refuses; tests/mesh has eight devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jlora


@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P(None, None, "x")], ids=str)
def test_the_laws_hold_on_an_explicit_mesh_of_one_device(spec):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    frozen, lora = jlora.split(
        {"w": jnp.ones((7, 11))}, jlora.LoraConfig(targets="w", rank=2), jax.random.key(0)
    )
    lora = jax.tree.map(lambda leaf: leaf + 1, lora)
    x = jax.device_put(jnp.ones((3, 5, 7)), NamedSharding(mesh, spec))

    def loss(params, x):
        product = jnp.einsum("abc,cd->abd", x, params["w"])
        return (product**2).sum()

    with jax.set_mesh(mesh):
        lifted = jax.grad(jlora.lift(loss, strict=True), argnums=1)(frozen, lora, x)
        merged = jax.grad(lambda lora: loss(jlora.merge(frozen, lora), x))(lora)
    for path, node in lifted.items():
        np.testing.assert_allclose(node.a, merged[path].a, rtol=1e-5)
        np.testing.assert_allclose(node.b, merged[path].b, rtol=1e-5)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("method", ["lora", "dora", "qalora"])
def test_arrays_that_lie_nowhere_merge_and_lift_under_a_mesh(mode, method):
    """With ranks that differ by layer, so that the scaling is an array."""
    params = {"w": jax.random.normal(jax.random.key(1), (3, 7, 11))}
    config = jlora.LoraConfig(
        targets="w", rank=4, rank_pattern={"w": (4, 2, 3)}, method=method, init="gaussian",
        options={"block": 7} if method == "qalora" else {},
    )  # fmt: skip
    axes = {"w": jlora.Axes(inputs=(1,), outputs=(2,), stack=(0,))}
    frozen, lora = jlora.split(params, config, jax.random.key(0), axes=axes)
    assert lora["w"].scaling.shape == (3, 4)
    lora["w"] = dataclasses.replace(lora["w"], b=jnp.cos(lora["w"].b + 1))

    def model(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w @ w.T), None), x, params["w"])[0]

    x = jnp.ones((5, 7))
    merged = jlora.merge(frozen, lora)
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(mode,))):
        again = jlora.merge(frozen, lora)
        outputs = jax.jit(jlora.lift(model, strict=True))(frozen, lora, x)
    np.testing.assert_array_equal(again["w"], merged["w"])
    np.testing.assert_allclose(outputs, model(merged, x), rtol=1e-4)


def test_leaves_without_a_layout_are_named():
    frozen, lora = jlora.split(
        {"w": jnp.ones((7, 11)), "v": jnp.ones((11, 7))},
        jlora.LoraConfig(targets="w|v", rank=2),
        jax.random.key(0),
    )
    with pytest.raises(
        ValueError, match=r"w: expected a NamedSharding or a PartitionSpec, got Single"
    ):
        jlora.shardings(frozen, lora)
    with pytest.raises(
        ValueError, match=r"v: expected a NamedSharding or a PartitionSpec, got no such leaf"
    ):
        jlora.shardings({"w": frozen["w"]}, lora)
