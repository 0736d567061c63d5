"""What `benchmarks.ahead` reads in a compiled program is what the program moves."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jlora
from benchmarks.ahead._collectives import moved, sent
from jlora import models

LAYERS, WIDTH, VOCABULARY = 3, 32, 104
pytestmark = pytest.mark.usefixtures("compiled_as_ever")


@pytest.fixture(scope="module", name="mesh")
def _mesh():
    return models.make_mesh({"fsdp": 4, "model": 2})


def of(mesh, fn, *shapes_and_specs):
    args = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, *spec in shapes_and_specs
    ]
    return moved(jax.jit(fn).lower(*args).compile().as_text(), 8)


def test_a_stack_of_weights_is_gathered_once_for_each_turn_of_the_loop(mesh):
    def scanned(x, w):
        lay = lambda x, *spec: jax.lax.with_sharding_constraint(  # noqa: E731
            x, NamedSharding(mesh, PartitionSpec(*spec))
        )
        return jax.lax.scan(lambda x, w: (lay(x @ lay(w), "fsdp"), None), lay(x, "fsdp"), w)[0]

    x, stack = ((20, 12), "fsdp"), ((LAYERS, 12, 12), None, "fsdp")
    [gathered] = of(mesh, scanned, x, stack)
    assert (gathered.name, gathered.chips, gathered.times) == ("all-gather", 4, LAYERS)
    assert gathered.sent == LAYERS * 12 * 12 * 4 * 3 / 4


def test_a_sum_over_an_axis_is_sent_twice_but_for_a_chips_own_part(mesh):
    x, w = ((8, 10), None, "model"), ((10, 6), "model")
    [summed] = of(mesh, lambda x, w: x @ w, x, w)
    assert (summed.name, summed.chips, summed.times) == ("all-reduce", 2, 1)
    assert sent([summed]) == {"all-reduce": 2 * 1 / 2 * 8 * 6 * 4}


def loss_on(mesh, rows, length):
    config = models.DecoderConfig(
        vocabulary=VOCABULARY, width=WIDTH, layers=LAYERS, heads=4, kv_heads=2, head_dim=8,
        mlp_width=40, max_length=64,
    )  # fmt: skip
    init = lambda: models.Decoder(config).init(jax.random.key(0), jnp.ones((1, 2), int))  # noqa: E731
    layout = models.Layout(mesh)
    shapes, structure = jax.tree_util.tree_flatten_with_path(jax.eval_shape(init)["params"])
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in shapes}
    places = layout.weights(config, {path: leaf.shape for path, leaf in named.items()})
    params = structure.unflatten(leaf.update(sharding=places[p]) for p, leaf in named.items())
    model = models.Model(params, config, tokenizer=None, name="tiny", layout=layout)  # type: ignore
    dtypes: dict[str, Any] = dict.fromkeys(("tokens", "positions", "labels"), jnp.int32)
    dtypes["weights"] = jnp.float32
    batch = {
        name: jax.ShapeDtypeStruct((rows, length), dtype, sharding=layout.rows)
        for name, dtype in dtypes.items()
    }
    return model, params, batch


def test_the_head_is_gathered_once_for_all_chunks_of_the_loss(mesh):
    model, params, batch = loss_on(mesh, rows=8, length=64)

    def gradient_of_the_norm(frozen, norm, batch):
        loss = lambda norm: models.answer_loss(model, frozen | {"norm": norm}, batch)[0]  # noqa: E731
        return jax.grad(loss)(norm)

    frozen = {name: tree for name, tree in params.items() if name != "norm"}
    text = jax.jit(gradient_of_the_norm).lower(frozen, params["norm"], batch).compile().as_text()
    found = moved(text, 8)
    heads = [each for each in found if (WIDTH, VOCABULARY // 2) in each.shapes]
    assert [(each.name, each.times) for each in heads] == [("all-gather", 1)]


def test_thin_products_read_one_copy_of_what_several_weights_read():
    """Made before the products, so that their gradients are added up first, and over chips once."""
    names = ("q", "k", "v", "o")
    params = {name: jnp.ones((12, 12)) for name in names}

    def fn(params, x):
        q, k, v = (x @ params[name] for name in names[:3])
        return jnp.tanh(q * k + v) @ params["o"]

    frozen, lora = jlora.split(params, jlora.LoraConfig(targets=".", rank=2), jax.random.key(0))
    jaxpr = jax.make_jaxpr(jlora.lift(fn, strict=True))(frozen, lora, jnp.ones((5, 12)))
    done = [e.primitive.name for e in jaxpr.eqns if e.primitive.name in ("copy", "dot_general")]
    assert done == ["copy"] + 9 * ["dot_general"] + ["copy"] + 3 * ["dot_general"]
