"""Functions of each device's part: whole meshes and single axes made manual."""

import functools

import jax
import jax.numpy as jnp
import pytest
from on_meshes import LAYOUTS, Case, normal

X = normal(16, 24, seed=3, scale=1.0)


def mapped(on, part, in_layouts, out_layout, axes):
    """`jax.shard_map` over these axes, or over all; the function itself on one device."""
    if on.mesh is None:
        return part
    names = set(on.mesh.axis_names) if axes is None else axes & set(on.mesh.axis_names)
    return jax.shard_map(
        part,
        mesh=on.mesh,
        in_specs=tuple(on.only(names, *layout) for layout in in_layouts),
        out_specs=on.only(names, *out_layout),
        axis_names=names,
    )


def over(on, reduce, x, name):
    """A collective along an axis, where there is one."""
    return x if on.mesh is None or name not in on.mesh.axis_names else reduce(x, name)


def megatron(axes):
    """Columns of the first matrix and rows of the second on each device, and one sum."""

    def model(on):
        def part(up, down, x):
            return over(on, jax.lax.psum, jnp.tanh(x @ up) @ down, "model")

        layouts = ((None, "model"), ("model", None), ("data", None))
        run = mapped(on, part, layouts, ("data", None), axes)
        return lambda p, x: run(p["up"], p["down"], x)

    return model


def gathered(on):
    """Fully sharded: each weight is gathered where it is used."""

    gather = functools.partial(jax.lax.all_gather, axis=0, tiled=True)

    def part(up, down, x):
        up, down = over(on, gather, up, "data"), over(on, gather, down, "data")
        return over(on, jax.lax.psum, jnp.tanh(x @ up) @ down, "model")

    layouts = (("data", "model"), (("model", "data"), None), ("data", None))
    run = mapped(on, part, layouts, ("data", None), None)
    return lambda p, x: run(p["up"], p["down"], x)


def case(model, up=(None, "model"), down=("model", None)):
    params = {"up": normal(24, 40, seed=1), "down": normal(40, 24, seed=2)}
    return Case(model, params, {"up": up, "down": down}, (X,), (("data", None),))


CASES = {
    "all axes": case(megatron(None)),
    "model alone": case(megatron({"model"})),
    "fully sharded": case(gathered, ("data", "model"), (("model", "data"), None)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", CASES)
def test_each_device_computes_with_its_part(on, axes, layout):
    CASES[axes].check(on, layout=layout)


@pytest.mark.parametrize("axes", CASES)
def test_magnitudes_too(on, axes):
    CASES[axes].check(on, method="dora")


@pytest.mark.parametrize("layout", ["where split left it", "as its weights"])
@pytest.mark.parametrize("axes", CASES)
def test_fresh_adapters(on, axes, layout):
    CASES[axes].check(on, layout=layout, fresh=True)
