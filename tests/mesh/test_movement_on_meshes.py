"""Weights and activations that a model moves between layouts stay factored and right."""

import jax
import jax.numpy as jnp
import pytest
from on_meshes import Case, normal, on_each

import jlora

TOKENS = jax.random.randint(jax.random.key(9), (16, 3), 0, 40)
X = normal(16, 24, seed=3, scale=1.0)
W = {"w": normal(24, 40, seed=1)}
TABLE = {"table": normal(40, 24, seed=4), "w": normal(24, 16, seed=5)}
METHOD = pytest.mark.parametrize("method", ["lora", "dora"])


def matrix(model, layout=("data", "model")):
    """A case of one matrix, and rows to multiply with it."""
    return Case(model, W, {"w": layout}, (X,), (("data", None),))


def table(model, layout):
    """A case of a lookup, and of a product with what was found."""
    layouts = {"table": layout, "w": ("data", "model")}
    return Case(model, TABLE, layouts, (TOKENS,), (("data", None),))


def product(on, x, w, *layout):
    return jnp.einsum("...i,io->...o", x, w, out_sharding=on.told(*layout))


def whole_weight(on):
    """Gathered before its use, as a fully sharded weight is."""
    return lambda p, x: product(on, x, on.lay(p["w"]), "data", None)


def turned_weight(on):
    return lambda p, x: product(on, x, on.lay(p["w"], "model", "data"), "data", None)


def reshaped_weight(on):
    """A reshape that splits a dimension, once that dimension is whole."""

    def fn(p, x):
        w = on.lay(p["w"], "data").reshape(24, 5, 8)
        return jnp.einsum("bi,ihk->bhk", x, w, out_sharding=on.told("data", None, None))

    return fn


def transposed_weight(on):
    """Tied: in one direction, and laid out anew in the other."""

    def fn(p, x):
        hidden = product(on, x, p["w"], "data", "model")
        back = on.lay(p["w"].T, "model", None)
        return product(on, jnp.tanh(hidden), back, "data", None)

    return fn


def moved_activation(on):
    """What an adapted product gives, laid out anew, reshaped, and summed over a split dimension."""

    def fn(p, x):
        hidden = product(on, x, p["w"], "data", "model")
        rows = on.lay(hidden, "model", None).reshape(16, 5, 8)
        return jnp.tanh(rows).sum(1), on.lay(hidden, None, "data").sum(0)

    return fn


def auto_axes(on):
    """A part of the model in which all axes are automatic."""

    def fn(p, x):
        inner = on.automatic(lambda w, x: jnp.tanh(x @ w), "data", None)
        return inner(p["w"], x)

    return fn


def auto_axes_after(on):
    """Only what comes after the product is in the automatic part."""

    def fn(p, x):
        hidden = product(on, x, p["w"], "data", "model")
        inner = on.automatic(lambda h: jnp.tanh(h).reshape(8, 2, 40), None, None, "model")
        return inner(hidden)

    return fn


MOVES = {
    move.__name__: matrix(move)
    for move in (whole_weight, turned_weight, reshaped_weight, transposed_weight, moved_activation)
}
EXPLICIT_MOVES = {move.__name__: matrix(move) for move in (auto_axes, auto_axes_after)}


@METHOD
@pytest.mark.parametrize("move", MOVES)
def test_moved_between_layouts(on, move, method):
    MOVES[move].check(on, method=method)


@METHOD
@pytest.mark.parametrize("move", EXPLICIT_MOVES)
@on_each("2x4", "8", "2 auto x 4", "2 x 4 auto")
def test_a_part_of_the_model_is_automatic(on, move, method):
    EXPLICIT_MOVES[move].check(on, method=method)


@pytest.mark.parametrize("layout", ["where split left it", "replicated"])
@pytest.mark.parametrize("move", ["whole_weight", "transposed_weight"])
def test_moved_between_layouts_beside_factors_that_lie_whole(on, move, layout):
    MOVES[move].check(on, layout=layout)


def looked_up(on):
    """As a model on explicit axes looks rows up: with the layout that they shall have."""

    def fn(p, ids):
        layout = on.told("data", None, None)
        rows = p["table"].at[ids].get(out_sharding=layout) if layout else p["table"][ids]
        return product(on, jnp.tanh(rows), p["w"], "data", None, "model")

    return fn


def taken(on):
    """`jnp.take` can't be told a layout: the table's rows are made whole first."""

    def fn(p, ids):
        rows = jnp.take(on.lay(p["table"], None, "model"), on.lay(ids), axis=0)
        return product(on, jnp.tanh(rows), p["w"], None, None, None)

    return fn


def looked_up_and_tied(on):
    """Rows on the way in, the same table on the way out."""

    def fn(p, ids):
        layout = on.told("data", None, None)
        rows = p["table"].at[ids].get(out_sharding=layout) if layout else p["table"][ids]
        return jnp.einsum("btd,vd->btv", jnp.tanh(rows), p["table"], out_sharding=layout)

    return fn


LOOKUPS = {
    f"{lookup.__name__}, {name}": table(lookup, layout)
    for lookup in (looked_up, taken, looked_up_and_tied)
    for name, layout in {"rows split": ("model", None), "columns split": (None, "model")}.items()
}


@METHOD
@pytest.mark.parametrize("lookup", LOOKUPS)
def test_rows_of_a_table_that_is_split(on, lookup, method):
    LOOKUPS[lookup].check(on, method=method)


def heads(on):
    """Projections to and from heads, which are split."""

    def fn(p, x):
        split = on.told("data", "model", None)
        queries = jnp.einsum("bd,dhk->bhk", x, p["query"], out_sharding=split)
        return jnp.einsum(
            "bhk,hkd->bd", jnp.tanh(queries), p["out"], out_sharding=on.told("data", None)
        )

    return fn


HEADS = Case(
    heads,
    params={"query": normal(24, 8, 5, seed=1), "out": normal(8, 5, 24, seed=2)},
    layouts={"query": ("data", "model", None), "out": ("model", None, "data")},
    args=(X,),
    arg_layouts=(("data", None),),
    axes={"query": jlora.Axes((0,), (1, 2)), "out": jlora.Axes((0, 1), (2,))},
)


@METHOD
def test_kernels_split_along_their_heads(on, method):
    HEADS.check(on, method=method)


def test_axes_are_traced_on_the_mesh(on):
    placed, args = HEADS.placed(on, HEADS.params)
    with jax.set_mesh(on.mesh):
        assert jlora.trace_axes(heads(on), placed, *args) == HEADS.axes


def constrained(on):
    """`with_sharding_constraint` names automatic axes of weights and activations."""

    def fn(p, x):
        hidden = on.constrain(x @ on.constrain(p["w"], None, "model"), "data", "model")
        return jnp.tanh(on.constrain(hidden, None, "data"))

    return fn


CONSTRAINED = matrix(constrained)


@METHOD
@on_each("2x4 auto", "8 auto", "2 auto x 4", "2 x 4 auto")
def test_constraints_along_automatic_axes(on, method):
    CONSTRAINED.check(on, method=method)
