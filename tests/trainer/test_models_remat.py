"""What a layer keeps for its gradient changes memory and work, and never the gradient."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import models, trainer

CONFIG = models.DecoderConfig(
    vocabulary=37, width=24, layers=6, heads=3, kv_heads=1, head_dim=8, mlp_width=40,
    max_length=256,
)  # fmt: skip


def outlined(rows, length, dtype="float32"):
    """(step's arguments by shape, model): A and B on all linear layers."""
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    init = lambda: models.Decoder(CONFIG).init(jax.random.key(0), jnp.zeros((1, 4), int))  # noqa: E731
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), jax.eval_shape(init)["params"]
    )
    model = models.Model(params, CONFIG, tokenizer=None, name="small")  # type: ignore
    axes = jlora.trace_axes(model.apply, params, tokens)
    config = jlora.LoraConfig(targets="all-linear", rank=3)
    split = lambda params: jlora.split(params, config, jax.random.key(1), axes=axes)  # noqa: E731
    frozen, lora = jax.eval_shape(split, params)
    init = lambda lora: trainer.init(lora, optimizer(), jax.random.key(2))  # noqa: E731
    batch = dict.fromkeys(("tokens", "positions", "labels"), tokens)
    batch["weights"] = jax.ShapeDtypeStruct((rows, length), jnp.float32)
    return model, (frozen, jax.eval_shape(init, lora), batch)


def optimizer():
    return jlora.optimizer(optax.adamw(1e-3))


def step(model, remat):
    loss = functools.partial(models.answer_loss, model, remat=remat)
    return trainer.make_step(jlora.lift(loss, strict=True), optimizer())


def filled(shapes):
    """Arrays of these shapes, small numbers."""
    rng = np.random.default_rng(0)

    def array(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        drawn = rng.integers(0, 17, leaf.shape) if whole else rng.normal(size=leaf.shape) / 4
        return jnp.asarray(drawn, leaf.dtype)

    return jax.tree.map(array, shapes)


def test_the_loss_and_its_gradient_are_the_same_whatever_is_kept():
    model, shapes = outlined(2, 19)
    frozen, state, batch = filled(shapes)

    def loss(remat):
        lifted = jlora.lift(functools.partial(models.answer_loss, model, remat=remat), strict=True)
        return jax.jit(jax.value_and_grad(lambda lora: lifted(frozen, lora, batch)[0]))(state.lora)

    kept, *others = map(loss, models.REMATS)
    for other in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max()),
            other,
            kept,
        )


def test_what_is_kept_less_is_computed_more():
    model, shapes = outlined(3, 64)
    compiled = [step(model, remat).lower(*shapes).compile() for remat in models.REMATS]
    memory = [each.memory_analysis().temp_size_in_bytes for each in compiled]
    work = [each.cost_analysis()["flops"] for each in compiled]
    assert models.REMATS == ("none", "products", "full")
    assert memory == sorted(memory, reverse=True)
    assert memory[2] < 0.7 * memory[1] < 0.7 * 0.5 * memory[0]
    assert work == sorted(work)
    assert work[2] > 1.1 * work[1] > 1.1 * work[0]


def kept_of_layers(model, tokens, remat):
    """The shapes in a layer of what the forward pass leaves for the backward one."""

    def hidden(params):
        return model.hidden(params, tokens, remat=remat)

    kept = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(hidden, params)[1], model.params))
    weights = {leaf.shape for leaf in jax.tree.leaves(model.params)}
    shapes = [leaf.shape for leaf in kept if leaf.shape not in weights]
    return [shape[1:] for shape in shapes if shape[0] == CONFIG.layers and len(shape) > 2]


def test_each_policy_keeps_what_it_is_called_for():
    model, _ = outlined(8, 50)
    everything, products, full = (
        kept_of_layers(model, jnp.zeros((8, 50), int), remat) for remat in models.REMATS
    )
    of_scores = [shape for shape in everything if shape[-2:] == (150, 50)]
    assert of_scores
    assert (8, 50, CONFIG.mlp_width) in products
    assert sum(math.prod(shape[2:]) for shape in products) <= (
        3 * CONFIG.width  # the layer's input, and what is added to it twice
        + (CONFIG.heads + 2 * CONFIG.kv_heads) * CONFIG.head_dim
        + 2 * CONFIG.mlp_width
    )
    assert full == [(8, 50, CONFIG.width)]


@pytest.mark.parametrize("remat", [True, "dots"])
def test_a_policy_that_is_none_is_told_those_there_are(remat):
    model, (_, _, batch) = outlined(2, 9)
    with pytest.raises(ValueError, match=f"remat is {remat!r}: expected one of none, products, fu"):
        jax.eval_shape(lambda p: models.answer_loss(model, p, batch, remat=remat), model.params)
    encoder = models.Encoder(
        models.EncoderConfig(
            vocabulary=3, width=8, layers=1, heads=2, mlp_width=8, max_length=64
        ),
        remat=remat,
    )  # fmt: skip
    with pytest.raises(ValueError, match="expected one of none, products, full"):
        jax.eval_shape(encoder.init, jax.random.key(0), batch["tokens"])


# ------------------------------------------------------------------------------------------------
# Precision
# ------------------------------------------------------------------------------------------------


def products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from products(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    ("remat", "precision"), [("none", "high"), ("products", "highest"), ("full", "default")]
)
def test_every_product_of_a_step_has_the_precision_that_is_asked_for(remat, precision):
    model, shapes = outlined(2, 19)
    with jax.default_matmul_precision(precision):
        found = list(products(step(model, remat).trace(*shapes).jaxpr.jaxpr))
    assert len(found) > 40
    wanted = jax.lax.Precision(precision)
    assert {equation.params["precision"] for equation in found} == {(wanted, wanted)}


def test_weights_in_half_precision_leave_the_adapter_and_its_moments_in_full():
    model, shapes = outlined(2, 19, "bfloat16")
    state, metrics = jax.eval_shape(step(model, "products"), *shapes)
    moving = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert {leaf.dtype for leaf in moving} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32
    narrow = filled(shapes)
    wide = jax.tree.map(
        lambda leaf: leaf.astype("float32") if leaf.dtype == jnp.bfloat16 else leaf, narrow[0]
    )
    exact = dataclasses.replace(model, params=wide)
    losses = [
        jax.jit(jlora.lift(functools.partial(models.answer_loss, its)))(
            frozen, narrow[1].lora, narrow[2]
        )
        for its, frozen in ((model, narrow[0]), (exact, wide))
    ]
    assert float(losses[0][0]) == pytest.approx(float(losses[1][0]), rel=2e-2)
