"""What a model has to be whose weights stay as its file stores them."""

import jax
import jax.numpy as jnp
from laws import assert_close, trained

import jlora
from jlora import models


def assert_used_as(small, plain, tokens, targets="all-linear"):
    """Losses and gradients are those of the plain model; the frozen tree and the adapter."""
    config = jlora.LoraConfig(targets=targets, rank=2, alpha=3.0)
    axes = jlora.trace_axes(small.apply, small.params, tokens)
    frozen, lora = jlora.split(small.params, config, jax.random.key(0), axes=axes)
    lora = trained(lora)

    def loss(lora, frozen):
        return jnp.square(jlora.lift(small.apply, strict=True)(frozen, lora, tokens)).mean()

    step = jax.jit(lambda *bases: [jax.value_and_grad(loss)(lora, base) for base in bases])
    assert_close(*step(frozen, plain.params), 1e-4)
    return frozen, lora


def assert_outlined(folder):
    """An outline has the shapes of what is loaded."""
    shapes, loaded = (
        each(folder, quantize="stored").params for each in (models.outline, models.load)
    )
    assert jax.tree.structure(shapes) == jax.tree.structure(loaded)
    for one, other in zip(*map(jax.tree.leaves, (shapes, loaded)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
