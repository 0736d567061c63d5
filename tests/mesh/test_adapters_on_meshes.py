"""Fresh and trained adapters, wherever they lie: merge, unmerge and lift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import assert_close
from on_meshes import ALL, LAYOUTS, ONE, OPTIONS, Case, assert_equal, normal

import jlora


def mlp(on):
    def fn(params, x):
        columns, rows = on.told("data", "model"), on.told("data", None)
        hidden = jnp.tanh(jnp.einsum("bi,ih->bh", x, params["up"], out_sharding=columns))
        return jnp.einsum("bh,ho->bo", hidden, params["down"], out_sharding=rows)

    return fn


MLP = Case(
    mlp,
    params={"up": normal(24, 40, seed=1), "down": normal(40, 24, seed=2)},
    layouts={"up": ("data", "model"), "down": ("model", "data")},
    args=(normal(16, 24, seed=3, scale=1.0),),
    arg_layouts=(("data", None),),
)
METHODS = ("lora", "dora", "qalora")


@ALL
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_lifted_as_merged_on_one_device(on, method, layout):
    MLP.check(on, method=method, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_fresh_adapters_are_lifted(on, method, layout):
    MLP.check(on, method=method, layout=layout, fresh=True)


@ALL
@pytest.mark.parametrize("layout", [*LAYOUTS, "held by one device"])
@pytest.mark.parametrize("method", METHODS)
def test_merged_as_on_one_device_and_laid_out_as_before(on, method, layout):
    for fresh in (False, True):
        frozen, lora = MLP.adapter(method, fresh)
        want = jlora.merge(frozen, lora)
        placed, _ = MLP.placed(on, frozen)
        if layout == "held by one device":
            lora = jax.device_put(lora, jax.devices()[0])
        else:
            lora = LAYOUTS[layout](on, placed, lora)
        with jax.set_mesh(on.mesh):
            merged = jlora.merge(placed, lora)
        check_merged(merged, want, placed)
    if method == "lora":  # a fresh one changes nothing, bit for bit
        assert_equal(merged, frozen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_merged_under_jit(on, method, layout):
    frozen, lora = MLP.adapter(method)
    want = jlora.merge(frozen, lora)
    placed, _ = MLP.placed(on, frozen)
    lora = LAYOUTS[layout](on, placed, lora)
    with jax.set_mesh(on.mesh):
        merged = jax.jit(jlora.merge)(placed, lora)
    check_merged(merged, want, placed)


@pytest.mark.parametrize("method", METHODS)
def test_merged_where_no_mesh_is_set(on, method):
    """Arrays say where they lie: on which mesh need not be said again."""
    frozen, lora = MLP.adapter(method)
    placed, _ = MLP.placed(on, frozen)
    followed = LAYOUTS["as its weights"](on, placed, lora)
    check_merged(jlora.merge(placed, followed), jlora.merge(frozen, lora), placed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unmerged_again(on, layout):
    for fresh in (False, True):
        frozen, lora = MLP.adapter(fresh=fresh)
        merged, _ = MLP.placed(on, jlora.merge(frozen, lora))
        lora = LAYOUTS[layout](on, merged, lora)
        with jax.set_mesh(on.mesh):
            again = jlora.unmerge(merged, lora)
        check_merged(again, frozen, merged)


def test_what_dora_merged_is_refused_by_name(on):
    frozen, lora = MLP.adapter("dora")
    placed, _ = MLP.placed(on, frozen)
    with jax.set_mesh(on.mesh), pytest.raises(ValueError, match=r"down: .*\n  up: "):
        jlora.unmerge(placed, LAYOUTS["as its weights"](on, placed, lora))


@pytest.mark.parametrize("method", METHODS)
def test_split_on_the_mesh_learns_there(on, method):
    """Weights that lie on the mesh, a fresh adapter of them: lifted, it is the base function."""
    placed, args = MLP.placed(on, MLP.params)
    with jax.set_mesh(on.mesh):
        config = jlora.LoraConfig(
            targets=".", rank=4, method=method, options=OPTIONS.get(method, {})
        )
        frozen, lora = jlora.split(placed, config, jax.random.key(0))
        loss = lambda params, x: (mlp(on)(params, x) ** 2).mean()  # noqa: E731
        lifted = jax.jit(jax.value_and_grad(jlora.lift(loss, strict=True), argnums=1))
        before, grads = lifted(frozen, lora, *args)
        moved = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, lora, grads)
        after, _ = lifted(frozen, moved, *args)
    np.testing.assert_allclose(before, (mlp(ONE)(MLP.params, *MLP.args) ** 2).mean(), rtol=1e-5)
    assert after < before


def every_kind(on):
    """Matrices, a bias, a norm, and rows of a table."""

    def fn(p, ids):
        layout = on.told("data", None)
        x = p["table"].at[ids].get(out_sharding=layout) if layout else p["table"][ids]
        x = x * p["norm"] + jnp.square(x).mean(-1, keepdims=True)
        dense = p["dense"]
        columns = on.told("data", "model")
        return jnp.einsum("bi,io->bo", x, dense["kernel"], out_sharding=columns) + dense["bias"]

    return fn


KINDS = Case(
    every_kind,
    params={
        "table": normal(40, 24, seed=1),
        "norm": jnp.ones(24),
        "dense": {"kernel": normal(24, 16, seed=2), "bias": normal(16, seed=3)},
    },
    layouts={
        "table": ("model", "data"),
        "norm": (None,),
        "dense": {"kernel": ("data", "model"), "bias": ("model",)},
    },
    args=(jnp.arange(16) * 7 % 40,),
    arg_layouts=(("data",),),
    options={"targets": "kernel", "bias": "lora", "train": "norm", "tokens": {"table": (7, 21)}},
)


@pytest.mark.parametrize("layout", ["where split left it", "as its weights"])
def test_every_kind_of_node_is_lifted(on, layout):
    KINDS.check(on, layout=layout)


@pytest.mark.parametrize("layout", ["where split left it", "as its weights"])
def test_every_kind_of_node_is_merged(on, layout):
    frozen, lora = KINDS.adapter()
    assert {type(node).__name__ for node in lora.values()} == {
        *("LoraWeight", "BiasDelta", "WholeWeight", "TokenRows")
    }
    want = jlora.merge(frozen, lora)
    placed, _ = KINDS.placed(on, frozen)
    lora = LAYOUTS[layout](on, placed, lora)
    with jax.set_mesh(on.mesh):
        merged = jlora.merge(placed, lora)
    check_merged(merged, want, placed)


def check_merged(got, want, like):
    assert_close(got, want)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(like), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim), (path, leaf.sharding)
