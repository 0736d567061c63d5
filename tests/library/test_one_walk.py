"""One table of rules serves lift, explain, trace_axes and all-linear: what one follows, all do."""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType
from laws import adapted, assert_close, check_law_1

import jlora
from jlora.extend import primitives

KEY = jax.random.key
KNOWN = set(primitives())  # read before any test can register a rule of its own
AXES = {"w": jlora.Axes(), "s": jlora.Axes((1,), (2,), stack=(0,)), "k": jlora.Axes((0, 1), (2,))}
PARAMS = {
    "w": jax.random.normal(KEY(0), (6, 11)),
    "s": jax.random.normal(KEY(1), (3, 6, 11)),
    "k": jax.random.normal(KEY(2), (3, 6, 11)),
}
X = jax.random.normal(KEY(3), (5, 6))
X3 = jax.random.normal(KEY(4), (3, 5, 6))
ROW = jax.random.normal(KEY(5), (11,))
MESH = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
EXPLICIT = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
EACH = functools.partial(jnp.einsum, "ebi,eio->ebo", X3)  # a stack's own rows


@jax.custom_jvp
def own_tangent(w, x):
    return x @ w


own_tangent.defjvp(lambda p, t: (own_tangent(*p), p[1] @ t[0] + 2 * t[1] @ p[0]))


@jax.custom_vjp
def own_gradient(w, x):
    return x @ w


own_gradient.defvjp(
    lambda w, x: (x @ w, (w, x)), lambda saved, g: (3 * saved[1].T @ g, g @ saved[0].T)
)


@jax.custom_batching.custom_vmap
def own_batching(w, x):
    return x @ w


@own_batching.def_vmap
def _(size, batched, w, x):
    raise AssertionError("nothing is mapped here")


def mapped(fn, *specs):
    return jax.shard_map(fn, mesh=MESH, in_specs=specs, out_specs=jax.P())


def resharded(w):
    return jax.sharding.reshard(w, jax.P(None, None))


# For each primitive a function of the parameters in which a weight meets it on its way to a
# product.
PROGRAMS = {
    "transpose": lambda p: (p["w"].T @ X.T).T,
    "stop_gradient": lambda p: X @ lax.stop_gradient(p["w"]) + X @ p["s"][0],
    "convert_element_type": lambda p: X @ p["w"].astype("bfloat16").astype("float32"),
    "reduce_precision": lambda p: X @ lax.reduce_precision(p["w"], 8, 23),
    "squeeze": lambda p: X @ lax.squeeze(p["s"][1:2], (0,)),
    "broadcast_in_dim": lambda p: EACH(jnp.broadcast_to(p["w"], (3, 6, 11))),
    "reshape": lambda p: jnp.einsum("bi,ixy->bxy", X, p["w"].reshape(6, 11, 1)),
    "rev": lambda p: X @ p["w"][::-1, ::-1],
    "pad": lambda p: jnp.pad(X, ((0, 0), (1, 0))) @ jnp.pad(p["w"], ((1, 0), (2, 1))),
    "tile": lambda p: X @ jnp.tile(p["w"], (1, 3)),
    "slice": lambda p: X[:, 1:5:2] @ p["w"][1:5:2, 2:],
    "split": lambda p: [X @ part for part in jnp.split(p["w"], [4], axis=1)],
    "unstack": lambda p: [x @ each for x, each in zip(X3, p["s"], strict=True)],
    "dynamic_slice": lambda p: X @ lax.dynamic_index_in_dim(p["s"], jnp.int32(2), 0, False),
    "gather": lambda p: EACH(p["s"][jnp.array([2, 0, 2])]),
    "dynamic_update_slice": lambda p: EACH(
        lax.dynamic_update_slice(p["s"], p["w"][None], (1, 0, 0))
    ),
    "scatter": lambda p: EACH(p["s"].at[jnp.int32(1)].set(p["w"])),
    "scatter-add": lambda p: EACH(p["s"].at[jnp.int32(1)].add(0.5)),
    "scatter-sub": lambda p: EACH(p["s"].at[jnp.int32(1)].subtract(0.5)),
    "stack": lambda p: EACH(jnp.stack([p["w"], p["s"][0], 2 * p["w"]])),
    "concatenate": lambda p: X @ jnp.concatenate([p["w"], p["s"][0]], axis=1),
    "neg": lambda p: X @ -p["w"],
    "add": lambda p: X @ (p["w"] + p["s"][0]),
    "sub": lambda p: X @ (p["w"] - p["s"][0]),
    "mul": lambda p: X @ (p["w"] * np.arange(1, 12, dtype="float32")),
    "div": lambda p: X @ (p["w"] / 3),
    "select_n": lambda p: X @ jnp.where(np.arange(6)[:, None] > 2, p["w"], 0),
    "complex": lambda p: jnp.abs(X @ lax.complex(p["w"], p["s"][0])),
    "reduce_sum": lambda p: X @ p["w"] + p["s"].sum((1, 2))[0],
    "square": lambda p: X @ (p["w"] / jnp.sqrt(jnp.square(p["w"]).sum(0))),
    "integer_pow": lambda p: X @ (p["w"] / jnp.sqrt(lax.integer_pow(p["w"], 2).sum(0))),
    "dot_general": lambda p: X @ p["w"],
    "conv_general_dilated": lambda p: lax.conv_general_dilated(
        X3, p["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    ),
    "ragged_dot_general": lambda p: lax.ragged_dot(X, p["s"], jnp.array([2, 0, 3])),
    "jit": lambda p: jax.jit(lambda w: X @ w)(p["w"]),
    "custom_vmap_call": lambda p: own_batching(p["w"], X),
    "checkpoint": lambda p: jax.checkpoint(lambda w: X @ w)(p["w"]),
    "scan": lambda p: lax.scan(lambda c, w: (c, X @ w), 0, p["s"])[1],
    "while": lambda p: lax.fori_loop(
        0, jnp.int32(2), lambda k, c: c + X @ p["w"], 0 * X @ PARAMS["w"]
    ),
    "cond": lambda p: X @ lax.cond(X[0, 0] > 0, lambda: p["w"], lambda: p["s"][0]),
    "custom_jvp_call": lambda p: own_tangent(p["w"], X),
    "custom_vjp_call": lambda p: own_gradient(p["w"], X),
    "optimization_barrier": lambda p: X @ lax.optimization_barrier(p["w"]),
    "name": lambda p: X @ checkpoint_name(p["w"], "kept"),
    "copy": lambda p: X @ jnp.array(p["w"], copy=True),
    "device_put": lambda p: X @ jax.device_put(p["w"], jax.devices()[0]),
    "sharding_constraint": lambda p: (
        X @ lax.with_sharding_constraint(p["w"], jax.NamedSharding(MESH, jax.P("x")))
    ),
    "reshard": lambda p: X @ resharded(p["w"]),
    "shard_map": lambda p: mapped(lambda w: X @ w, jax.P())(p["w"]),
    "all_gather": lambda p: mapped(
        lambda w: lax.psum(X @ lax.all_gather(w, "x", axis=0, tiled=True), "x"), jax.P("x")
    )(p["w"]),
    "pcast": lambda p: mapped(
        lambda w: lax.psum(X @ lax.pcast(w, "x", to="varying"), "x"), jax.P()
    )(p["w"]),
}
BACKWARD_BY_NO_ONE = ("while", "custom_vmap_call")  # JAX has no gradient for them
# other names for the same in some release, or made by transformations alone
SAME = {
    "add_any": "add",
    "pjit": "jit",
    "remat": "checkpoint",
    "remat2": "checkpoint",
    "copy_p": "copy",
    "closed_call": "jit",
    "core_call": "jit",
    "call": "jit",
    "pvary": "pcast",
    "mesh_cast": "reshard",
}


def test_every_primitive_with_a_rule_has_a_program_here():
    assert KNOWN - SAME.keys() == PROGRAMS.keys() - SAME.keys()


def names(jaxpr):
    """All primitives in a jaxpr and in what is inside of it."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from names(inner)


def used(fn):
    """The leaves that a program uses."""
    return {path for path, leaf in PARAMS.items() if fn_reads(fn, path)}


def fn_reads(fn, path):
    jaxpr = jax.make_jaxpr(fn)(PARAMS).jaxpr
    var = dict(zip(sorted(PARAMS), jaxpr.invars, strict=True))[path]
    return any(var in eqn.invars for eqn in jaxpr.eqns)


@pytest.fixture
def mesh(name):
    """The mesh that some programs speak of."""
    with jax.set_mesh(EXPLICIT) if PROGRAMS[name] is PROGRAMS["reshard"] else nullcontext():
        yield


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_one_follows_all_follow(name):
    fn = PROGRAMS[name]
    inside = set(names(jax.make_jaxpr(fn)(PARAMS).jaxpr))
    same = {name, *(other for other, first in SAME.items() if first == name)}
    assert same & inside, f"the program has none of {same}: {inside}"
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    if name in BACKWARD_BY_NO_ONE:
        assert_close(jlora.lift(fn, strict=True)(frozen, lora), fn(jlora.merge(frozen, lora)), 5e-5)
        report = jlora.explain(fn, frozen, lora)
    else:  # lift: strict, and so factored
        tolerance = 3e-2 if name == "convert_element_type" else 5e-5
        report = check_law_1(fn, frozen, lora, tolerance=tolerance)
    paths = used(fn)
    assert {use.path for use in report.uses} == paths  # explain
    axes = jlora.trace_axes(fn, PARAMS)
    assert paths - axes.keys() <= ({"s"} if name == "reduce_sum" else set()), axes.unclear
    for path in paths & axes.keys():
        assert axes[path] == AXES[path], path
    # all-linear, where the result is no head because another product reads it
    result = lambda p: [jnp.tanh(each) for each in jax.tree.leaves(fn(p))]  # noqa: E731
    read = lambda p: [(each @ p["probe"][: each.shape[-1]]) for each in result(p)]  # noqa: E731
    linear = jlora.trace_axes(read, {**PARAMS, "probe": jnp.ones((40, 2))}).linear
    assert linear - {"probe"} == paths - ({"s"} if name == "reduce_sum" else set())
