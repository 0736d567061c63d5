"""Axes of size 1 and batches of 1 on explicit meshes: types agree, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import pytest
from on_meshes import Case, devices, normal

import jlora


def lookup(batch):
    """Rows of a table, and a norm of them; ``batch``: the axis that the batch is split along."""

    def model(on):
        def fn(p, ids):
            layout = on.told(batch, None, None)
            rows = p["table"].at[ids].get(out_sharding=layout) if layout else p["table"][ids]
            return rows / jnp.sqrt(jnp.square(rows).mean(-1, keepdims=True) + 1)

        return fn

    return model


def attention(batch):
    """Heads by an einsum and by a reshape, a softmax over a mask, a bias."""

    def model(on):
        def fn(p, x):
            heads = on.told(batch, None, "model", None)
            query = jnp.einsum("btd,dhk->bthk", x, p["query"], out_sharding=heads)
            value = jnp.einsum(
                "btd,do->bto", x, p["value"], out_sharding=on.told(batch, None, "model")
            )
            value = (value + p["bias"]).reshape(*value.shape[:2], 8, 5)
            scores = jnp.einsum(
                "bthk,bshk->bhts", query, value, out_sharding=on.told(batch, "model", None, None)
            )
            scores = jax.nn.softmax(jnp.where(jnp.tri(3, dtype=bool), scores, -9.0), -1)
            mixed = jnp.einsum("bhts,bshk->bthk", scores, value, out_sharding=heads)
            return jnp.einsum(
                "bthk,hkd->btd", mixed, p["out"], out_sharding=on.told(batch, None, None)
            )

        return fn

    return model


IDS = jax.random.randint(jax.random.key(9), (8, 3), 0, 40)
X = normal(8, 3, 24, seed=8, scale=1.0)
TABLE = {"table": normal(40, 24, seed=1)}
HEADS = {
    "query": normal(24, 8, 5, seed=2),
    "value": normal(24, 40, seed=3),
    "out": normal(8, 5, 24, seed=4),
    "bias": normal(40, seed=5),
}
SPLIT = {
    "query": ("data", "model", None),
    "value": ("data", "model"),
    "out": ("model", None, "data"),
    "bias": ("model",),
}
AXES = {
    "query": jlora.Axes((0,), (1, 2)),
    "value": jlora.Axes(),
    "out": jlora.Axes((0, 1), (2,)),
}


@functools.cache
def case(model, size, batch):
    if model is lookup:
        split = {"table": ("model", "data")}
        return Case(lookup(batch), TABLE, split, (IDS[:size],), ((batch, None),))
    return Case(attention(batch), HEADS, SPLIT, (X[:size],), ((batch, None, None),), AXES)


# (mesh, rows in the batch, the axis that the batch is split along)
NARROW = [
    ("1x8", 1, "data"),
    ("1x8", 3, "data"),
    ("1x8", 1, None),
    ("8x1", 8, "data"),
    ("8x1", 1, None),
    ("1x1", 1, "data"),
    ("2x4", 1, None),
]
BATCHES = pytest.mark.parametrize(
    ("mesh", "size", "batch"), NARROW, ids=[f"{m}, {n} along {axis}" for m, n, axis in NARROW]
)


MODELS = pytest.mark.parametrize("model", [lookup, attention])


@BATCHES
@MODELS
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_lifted_as_merged_on_one_device(mesh, size, batch, model, method):
    case(model, size, batch).check(devices(mesh), method=method)


@BATCHES
@MODELS
def test_factors_where_split_left_them(mesh, size, batch, model):
    case(model, size, batch).check(devices(mesh), layout="where split left it")


@pytest.mark.parametrize(("mesh", "size", "batch"), [NARROW[0], NARROW[3], NARROW[-1]])
def test_dropout(mesh, size, batch):
    case(attention, size, batch).check_dropout(devices(mesh))
