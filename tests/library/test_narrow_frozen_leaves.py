"""A frozen leaf that says nothing but what its arrays say."""

import dataclasses

import jax
import jax.numpy as jnp
from laws import assert_close

import jlora
from jlora import extend


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Half(extend.FrozenLeaf):
    """Its shape is read off its array, which in a step of a scan lacks an axis."""

    kept: jax.Array

    dtype = jnp.dtype("float32")
    shape = property(lambda self: self.kept.shape)

    def dimensions(self):
        return {"kept": tuple(range(len(self.kept.shape)))}

    def plain(self):
        return self.kept.astype(self.dtype)


def model(params, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w.T), None), x, params["layers"])[0]


def test_over_a_leaf_without_a_shape_of_its_own_a_scan_is_as_over_the_plain_weight():
    layers = jax.random.normal(jax.random.key(0), (3, 7, 7)) / 3
    x = jax.random.normal(jax.random.key(1), (5, 7))
    small = {"layers": Half(layers.astype("float16"))}
    plain = {"layers": small["layers"].plain()}
    config = jlora.LoraConfig(targets="layers", rank=2)
    axes = jlora.trace_axes(model, plain, x)
    frozen, lora = jlora.split(small, config, jax.random.key(2), axes=axes)
    lora = jax.tree.map(lambda leaf: leaf + 0.1, lora)
    apply = jlora.lift(model, strict=True)

    def loss(lora, base):
        return jnp.square(apply(base, lora, x)).sum()

    assert_close(loss(lora, frozen), loss(lora, plain), 1e-5)
    assert_close(jax.grad(loss)(lora, frozen), jax.grad(loss)(lora, plain), 1e-4)
