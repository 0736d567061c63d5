"""`jlora.shardings`: an adapter's layout from whatever says how its weights lie."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from laws import assert_close
from on_meshes import ONE_OF_EACH_KIND, normal, on_each

import jlora

PARAMS = {
    "up": normal(24, 40, seed=1),
    "heads": normal(16, 8, 5, seed=2),
    "layers": normal(8, 40, 16, seed=3),
    "bias": jnp.ones(8),
}
LAYOUTS = {
    "up": ("data", "model"),
    "heads": (None, "model", None),
    "layers": ("model", "data", None),
    "bias": ("model",),
}
AXES = {
    "up": jlora.Axes(),
    "heads": jlora.Axes((0,), (1, 2)),
    "layers": jlora.Axes((1,), (2,), (0,)),
}
A = {"up": ("data", None), "heads": (None, None), "layers": ("model", "data", None)}
B = {"up": (None, "model"), "heads": (None, "model", None), "layers": ("model", None, None)}
MAGNITUDE = {"up": ("model",), "heads": ("model", None), "layers": ("model", None)}
NAMES = ("data", "model")
EXPLICIT = on_each("2x4", "8")
# Flax NNX refuses meshes whose axes are of two types.
OF_ONE_TYPE = on_each("2x4", "2x4 auto")


def adapter(params=PARAMS, axes=AXES, **options):
    options = {"targets": "up|heads|layers", "rank": 4, "method": "dora", "bias": "all"} | options
    return jlora.split(params, jlora.LoraConfig(**options), jax.random.key(0), axes=axes)[1]


def check_followed(on, lora, found):
    """Each factor lies as its weight does on the dimensions that they share; the rank is whole."""
    assert jax.tree.structure(found) == jax.tree.structure(lora)
    want = {path: {"a": A[path], "b": B[path], "magnitude": MAGNITUDE[path]} for path in A}
    want["bias"] = {"value": ("model",)}
    for path, fields in want.items():
        for name, layout in fields.items():
            check_lies(on, getattr(found[path], name), layout, getattr(lora[path], name).ndim)
    assert found["up"].scaling.is_fully_replicated
    jax.device_put(lora, found)


def check_lies(on, sharding, layout, ndim):
    assert sharding.is_equivalent_to(NamedSharding(on.mesh, on.spec(*layout)), ndim), sharding
    assert sharding.mesh == on.mesh


def specs(on):
    return {path: on.spec(*layout) for path, layout in LAYOUTS.items()}


def named(on):
    return {path: NamedSharding(on.mesh, spec) for path, spec in specs(on).items()}


def test_of_arrays(on):
    lora = adapter()
    placed = on.put(PARAMS, LAYOUTS)
    check_followed(on, lora, jlora.shardings(placed, lora))
    with jax.set_mesh(on.mesh):
        check_followed(on, lora, jlora.shardings(placed, lora))


def test_of_named_shardings(on):
    lora = adapter()
    check_followed(on, lora, jlora.shardings(named(on), lora))


def test_of_shapes_that_say_where_they_go(on):
    lora = jax.eval_shape(adapter)
    shapes = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        PARAMS,
        named(on),
    )
    found = jlora.shardings(shapes, lora)
    assert found["layers"].b.spec == on.spec("model", None, None)


def test_of_partition_specs_and_a_mesh(on):
    lora = adapter()
    check_followed(on, lora, jlora.shardings(specs(on), lora, mesh=on.mesh))


def test_of_partition_specs_where_a_mesh_is_set(on):
    lora = adapter()
    with jax.set_mesh(on.mesh):
        check_followed(on, lora, jlora.shardings(specs(on), lora))


def test_partition_specs_alone_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"up: .*mesh="):
        jlora.shardings({"up": P("data", "model")}, adapter(targets="up", bias="none"))


@EXPLICIT
def test_within_jit(on):
    """Where the weights' types say how they lie, a traced function may ask, too."""
    lora = adapter()
    placed = on.put(PARAMS, LAYOUTS)

    @jax.jit
    def laid_out(params, lora):
        return jax.tree.map(jax.sharding.reshard, lora, jlora.shardings(params, lora))

    with jax.set_mesh(on.mesh):
        moved = laid_out(placed, lora)
    check_followed(on, lora, jax.tree.map(lambda leaf: leaf.sharding, moved))


@EXPLICIT
def test_of_shapes_that_a_traced_function_gives(on):
    lora = adapter()
    placed = on.put(PARAMS, LAYOUTS)
    with jax.set_mesh(on.mesh):
        shapes = jax.eval_shape(lambda params: params, placed)
        moved = jax.device_put(lora, jlora.shardings(shapes, lora))
    check_followed(on, lora, jax.tree.map(lambda leaf: leaf.sharding, moved))


def test_a_leaf_of_one_spec_entry_for_many_axes(on):
    lora = adapter(targets="up", bias="none")
    layout = {"up": (("data", "model"), None)}
    found = jlora.shardings(on.put({"up": PARAMS["up"]}, layout), lora)
    check_lies(on, found["up"].a, (("data", "model"), None), 2)
    check_lies(on, found["up"].b, (), 2)


def partitioned(*names):
    return nn.with_partitioning(nn.initializers.lecun_normal(), names)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(24, kernel_init=partitioned("data", "model"), name="up")(x)
        return nn.Dense(16, name="down")(nn.relu(x))


X = normal(16, 40, seed=4)


def linen(on):
    """(boxed shapes, plain parameters, their adapter) of a model on the mesh."""
    shapes = jax.eval_shape(Linen().init, jax.random.key(0), X)
    params = nn.unbox(Linen().init(jax.random.key(0), X))
    config = jlora.LoraConfig(targets="kernel", rank=4)
    return shapes, params, jlora.split(params, config, jax.random.key(1))[1]


def renamed(on, specs):
    """The axes that the model names and the mesh has not, left out."""
    return jax.tree.map(lambda spec: on.spec(*spec), specs, is_leaf=lambda s: isinstance(s, P))


def check_linen(on, found):
    check_lies(on, found["params/up/kernel"].a, ("data", None), 2)
    check_lies(on, found["params/up/kernel"].b, (None, "model"), 2)
    check_lies(on, found["params/down/kernel"].a, (), 2)


def test_of_linens_partition_specs(on):
    shapes, _, lora = linen(on)
    found = jlora.shardings(renamed(on, nn.get_partition_spec(shapes)), lora, mesh=on.mesh)
    check_linen(on, found)


@ONE_OF_EACH_KIND
def test_of_linens_shardings(on):
    shapes, params, lora = linen(on)
    wanted = nn.get_sharding(shapes, on.mesh)
    check_linen(on, jlora.shardings(wanted, lora))
    placed = jax.device_put(params, wanted)
    check_linen(on, jlora.shardings(placed, lora))


@ONE_OF_EACH_KIND
def test_of_boxed_parameters(on):
    """Parameters in linen's boxes are adapted as they are; their shardings come without boxes."""
    wanted = nn.get_sharding(jax.eval_shape(Linen().init, jax.random.key(0), X), on.mesh)
    boxed = jax.jit(Linen().init, out_shardings=wanted)(jax.random.key(0), X)
    config = jlora.LoraConfig(targets="kernel", rank=4)
    with jax.set_mesh(on.mesh):
        frozen, lora = jlora.split(boxed, config, jax.random.key(1))
        assert nn.get_sharding(frozen, on.mesh) == wanted  # the boxes are kept
        found = jlora.shardings(wanted, lora)
        again = jlora.shardings(frozen, lora)
    for sharding in (found, again):
        [up] = (node for path, node in sharding.items() if "up" in path)
        check_lies(on, up.a, ("data", None), 2)
        check_lies(on, up.b, (None, "model"), 2)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        names = nnx.with_partitioning(nnx.initializers.lecun_normal(), NAMES)
        self.up = nnx.Linear(40, 24, kernel_init=names, rngs=rngs)
        self.down = nnx.Linear(24, 16, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


def nnx_state(on):
    """(graph, state) of a module made on the mesh, its leaves where the module says."""
    with jax.set_mesh(on.mesh):
        return nnx.split(Nnx(nnx.Rngs(0)))


def check_nnx(on, found):
    [up] = (node for path, node in found.items() if "up" in path)
    check_lies(on, up.a, ("data", None), 2)
    check_lies(on, up.b, (None, "model"), 2)


@OF_ONE_TYPE
def test_of_an_nnx_state(on):
    _, state = nnx_state(on)
    config = jlora.LoraConfig(targets="kernel", rank=4)
    with jax.set_mesh(on.mesh):
        frozen, lora = jlora.split(state, config, jax.random.key(1))
        check_nnx(on, jlora.shardings(frozen, lora))
        check_nnx(on, jlora.shardings(nnx.get_named_sharding(state, on.mesh), lora))


@OF_ONE_TYPE
def test_of_an_nnx_states_partition_specs(on):
    _, state = nnx_state(on)
    config = jlora.LoraConfig(targets="kernel", rank=4)
    with jax.set_mesh(on.mesh):
        _, lora = jlora.split(state, config, jax.random.key(1))
    check_nnx(on, jlora.shardings(nnx.get_partition_spec(state), lora, mesh=on.mesh))


@OF_ONE_TYPE
def test_an_nnx_state_is_lifted_and_merged_on_the_mesh(on):
    graph, state = nnx_state(on)
    config = jlora.LoraConfig(targets="kernel", rank=4, init="orthogonal")
    run = lambda params, x: nnx.merge(graph, params)(x)  # noqa: E731
    x = on.put(X, ())
    with jax.set_mesh(on.mesh):
        want = jax.jit(run)(state, x)
        frozen, lora = jlora.split(state, config, jax.random.key(1))
        lora = jax.device_put(lora, jlora.shardings(frozen, lora))
        got = jax.jit(jlora.lift(run, strict=True))(frozen, lora, x)
        again = jax.jit(run)(jlora.merge(frozen, lora), x)
    assert_close(got, want, 1e-4)
    assert_close(again, want, 1e-4)
