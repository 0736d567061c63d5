"""The laws on a mesh of two dimensions: values, gradients, layouts and collectives."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from laws import adapted, assert_close

import jlora

WIDTH, INNER, VOCABULARY = 32, 64, 48
KEY = jax.random.key(0)
PARAMS = {
    "layers": {
        "up": jax.random.normal(KEY, (3, WIDTH, INNER)) * 0.1,
        "down": jax.random.normal(KEY, (3, INNER, WIDTH)) * 0.1,
    },
    "head": jax.random.normal(KEY, (WIDTH, VOCABULARY)) * 0.1,
}
SPECS = {
    "layers": {"up": P(None, "fsdp", "tp"), "down": P(None, "tp", "fsdp")},
    "head": P("fsdp", "tp"),
}
X = jax.random.normal(KEY, (16, WIDTH))


def loss_on(mode):
    """The model; where mesh axes are explicit it says how each product lies."""
    rows = {} if mode is AxisType.Auto else {"out_sharding": P("fsdp", None)}
    columns = {} if mode is AxisType.Auto else {"out_sharding": P("fsdp", "tp")}

    def loss(params, x):
        def layer(x, weights):
            hidden = jnp.tanh(jnp.einsum("bd,df->bf", x, weights["up"], **columns))
            return x + jnp.einsum("bf,fd->bd", hidden, weights["down"], **rows), None

        x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
        return jnp.mean(jnp.einsum("bd,dv->bv", x, params["head"], **columns) ** 2)

    return loss


def gathered(compiled):
    """The shapes that all-gathers make."""
    return set(re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", compiled.as_text()))


def check_mode(mode, frozen, lora, expected):
    mesh = jax.make_mesh((2, 4), ("fsdp", "tp"), axis_types=(mode, mode))
    loss = loss_on(mode)
    lifted = jlora.lift(loss, strict=True)
    with jax.set_mesh(mesh):

        def place(leaf, spec):
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        placed = jax.tree.map(place, frozen, SPECS)
        x = place(X, P("fsdp"))
        everywhere = jax.tree.map(lambda leaf: place(leaf, P()), lora)
        followed = jax.device_put(lora, jlora.shardings(placed, lora))
        assert followed["layers/up"].a.sharding.spec == P(None, "fsdp", None)
        assert followed["layers/up"].b.sharding.spec == P(None, None, "tp")
        assert followed["head"].scaling.sharding.spec == P()
        full = jax.jit(jax.value_and_grad(loss)).lower(placed, x).compile()
        weights = {"32,64", "64,32", "3,32,64", "3,64,32", "32,48"}
        for node in (everywhere, followed):
            step = jax.jit(jax.value_and_grad(lifted, argnums=1))
            assert_close(step(placed, node, x), expected, 1e-4)
            compiled = step.lower(placed, node, x).compile()
            extra = (gathered(compiled) - gathered(full)) & weights
            assert not extra, f"{mode}: all-gather of a frozen weight: {extra}"


def test_the_law_holds_inside_a_shard_map():
    mesh = jax.make_mesh((2, 4), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)

    def model(params, x):
        def part(up, down, x):
            up = jax.lax.all_gather(up, "fsdp", axis=0, tiled=True)
            return jax.lax.psum(jnp.tanh(x @ up) @ down, "tp")

        specs = (P("fsdp", "tp"), P("tp"), P("fsdp"))
        mapped = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=P("fsdp"))
        return mapped(params["up"], params["down"], x)

    params = {name: stack[0] for name, stack in PARAMS["layers"].items()}
    axes = jlora.trace_axes(model, params, X)
    assert axes == {"up": jlora.Axes(), "down": jlora.Axes()}
    frozen, lora = adapted(params, axes)
    lifted = jlora.lift(model, strict=True)
    got, pull = jax.vjp(jax.jit(lambda lora: lifted(frozen, lora, X)), lora)
    want, expected = jax.vjp(jax.jit(lambda lora: model(jlora.merge(frozen, lora), X)), lora)
    assert_close(got, want, 1e-5)
    assert_close(pull(jnp.cos(want)), expected(jnp.cos(want)), 1e-4)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_step_is_the_merged_one_and_gathers_no_frozen_weight(method):
    loss = loss_on(AxisType.Auto)
    axes = jlora.trace_axes(loss, PARAMS, X)
    frozen, lora = adapted(PARAMS, axes, rank=4, method=method)
    merged = jax.value_and_grad(lambda lora, frozen: loss(jlora.merge(frozen, lora), X))
    expected = jax.jit(merged)(lora, frozen)
    for mode in (AxisType.Auto, AxisType.Explicit):
        check_mode(mode, frozen, lora, expected)
