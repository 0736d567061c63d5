"""Stacks of layers, several adapters at once, and dropout, on a mesh as on one device."""

import jax
import jax.numpy as jnp
import pytest
from laws import assert_close
from on_meshes import LAYOUTS, ONE, ONE_OF_EACH_KIND, Case, graded, normal

import jlora

X = normal(16, 24, seed=3, scale=1.0)


def layers(on):
    """Layers that are scanned, each computed again for its gradient."""

    def step(x, layer):
        hidden = jnp.einsum("bi,ih->bh", x, layer["up"], out_sharding=on.told("data", "model"))
        back = jnp.einsum(
            "bh,ho->bo", jnp.tanh(hidden), layer["down"], out_sharding=on.told("data", None)
        )
        return x + back, None

    return lambda p, x: jax.lax.scan(jax.checkpoint(step), x, p)[0]


def gathered_layers(on):
    """The weights of one layer at a time are made whole, and again for the gradient."""

    def step(x, layer):
        up, down = on.lay(layer["up"]), on.lay(layer["down"])
        hidden = jnp.einsum("bi,ih->bh", x, up, out_sharding=on.told("data", None))
        return x + jnp.einsum(
            "bh,ho->bo", jnp.tanh(hidden), down, out_sharding=on.told("data", None)
        ), None

    return lambda p, x: jax.lax.scan(jax.checkpoint(step), x, p)[0]


def stack(model, **options):
    layout = {"up": (None, "data", "model"), "down": (None, "model", "data")}
    params = {"up": normal(3, 24, 40, seed=1), "down": normal(3, 40, 24, seed=2)}
    axes = dict.fromkeys(params, jlora.Axes((1,), (2,), (0,)))
    return Case(model, params, layout, (X,), (("data", None),), axes, options)


LAYERS = {
    "split": stack(layers),
    "gathered": stack(gathered_layers),
    "of other ranks": stack(layers, rank_pattern={"up": (4, 2, 3)}),
}


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("weights", LAYERS)
def test_scanned_layers(on, weights, method):
    LAYERS[weights].check(on, method=method)


@ONE_OF_EACH_KIND
@pytest.mark.parametrize("weights", LAYERS)
def test_scanned_layers_beside_factors_that_lie_whole(on, weights):
    LAYERS[weights].check(on, layout="replicated")


def test_axes_are_traced_on_the_mesh(on):
    case = LAYERS["split"]
    placed, args = case.placed(on, case.params)
    with jax.set_mesh(on.mesh):
        assert jlora.trace_axes(case.model(on), placed, *args) == case.axes


def two(lora):
    """Two adapters side by side along a new first axis."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), lora)


@ONE_OF_EACH_KIND
@pytest.mark.parametrize(
    ("method", "layout"),
    [("lora", "as its weights"), ("lora", "where split left it"), ("dora", "as its weights")],
)
def test_two_adapters_at_once(on, layout, method):
    case = LAYERS["split"]
    frozen, lora = case.adapter(method)
    placed, args = case.placed(on, frozen)

    def each(fn):
        return graded(jax.vmap(fn, in_axes=(None, 0, None)))

    def merged(frozen, lora, x):
        return layers(ONE)(jlora.merge(frozen, lora), x)

    want = jax.jit(each(merged))(frozen, two(lora), X)
    one = LAYOUTS[layout](on, placed, lora)
    with jax.set_mesh(on.mesh):
        got = jax.jit(each(jlora.lift(layers(on), strict=True)))(placed, two(one), *args)
    assert_close(got, want, 1e-4)


@ONE_OF_EACH_KIND
def test_an_adapter_for_each_example(on):
    """The adapters are split as the batch is."""
    case = LAYERS["split"]
    frozen, lora = case.adapter()
    many = jax.tree.map(lambda leaf: jnp.stack([leaf * k / 16 for k in range(1, 17)]), lora)

    def run(frozen, lora, x):
        return layers(ONE)(jlora.merge(frozen, lora), x)

    def each(fn):
        return jax.jit(graded(jax.vmap(fn, in_axes=(None, 0, 0))))

    want = each(run)(frozen, many, X[:, None])
    # within one example no dimension is split along "data"
    layouts = {"up": (None, None, "model"), "down": (None, "model", None)}
    placed = on.put(frozen, layouts)
    spread = jax.tree.map(lambda leaf: on.put(leaf, ("data",)), many)
    rows = on.put(X[:, None], ("data", None, None))
    with jax.set_mesh(on.mesh):
        lifted = jlora.lift(one_example(on), strict=True)
        got = each(lifted)(placed, spread, rows)
    assert_close(got, want, 1e-4)


def one_example(on):
    def step(x, layer):
        hidden = jnp.einsum("bi,ih->bh", x, layer["up"], out_sharding=on.told(None, "model"))
        back = jnp.einsum(
            "bh,ho->bo", jnp.tanh(hidden), layer["down"], out_sharding=on.told(None, None)
        )
        return x + back, None

    return lambda p, x: jax.lax.scan(jax.checkpoint(step), x, p)[0]


@ONE_OF_EACH_KIND
def test_dropout_drops_the_same_entries(on):
    """Its mask depends on the key and the place in the whole array, not on the mesh."""
    LAYERS["split"].check_dropout(on)


@ONE_OF_EACH_KIND
def test_layouts_that_a_model_asks_for_do_not_change_what_dropout_drops(on):
    """On one device this model says nothing of layouts: it computes the same without."""
    LAYERS["gathered"].check_dropout(on)
