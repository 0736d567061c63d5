"""HiRA as a method of your own: W0 multiplied, entry by entry, by a matrix of low rank.

    python examples/hira.py

``W0 * (1 + s A B)`` (Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for
Large Language Models", ICLR 2025, eq. 4), elementwise. In factors a product with it costs r
products with W0, so it is formed where a product needs it, one layer at a time, and again for the
gradient; rows that are looked up are rows of W0 times rows of A B. Only public names of jlora are
used.

It prints

    ...
    trainable 832 of 3,520 parameters (23.636 %) in 2 adapted leaves of rank 4; 3.33 kB beside 10.75 kB frozen
    loss 3.84 -> 2.31; merged and adapted differ by 1e-06
"""  # noqa: E501

import dataclasses
import tempfile
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import lax

import jlora
from jlora import extend
from jlora.extend import RANK, Factor


def multiplied(w, delta):
    """``W0 * (1 + s A B)``."""
    return w * (1 + delta)


@extend.register("hira")
@dataclasses.dataclass(frozen=True)
class HiraWeight(extend.Method):
    """A and B of one leaf; B is zero at the start."""

    a: jax.Array  # (*stack, *in, rank)
    b: jax.Array  # (*stack, rank, *out)
    scaling: jax.Array  # float32, never trained
    axes: jlora.Axes = dataclasses.field(metadata={"static": True})

    trainable: ClassVar = ("a", "b")
    decayed: ClassVar = ("a", "b")
    factors: ClassVar = ("a", "b")

    @classmethod
    def start(cls, leaf):
        """A as LoRA's, B zero: the adapted function is the base function."""
        uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        draw = lambda key: uniform(key, (*leaf.inputs, leaf.rank))  # noqa: E731
        for _ in leaf.stack:  # each layer has a key of its own
            draw = jax.vmap(draw)
        a = draw(jax.random.split(leaf.key, leaf.stack))
        b = jnp.zeros((*leaf.stack, leaf.rank, *leaf.outputs))
        return cls(a.astype(leaf.dtype), b.astype(leaf.dtype), leaf.scaling, leaf.axes), None

    @property
    def rank(self):
        """The columns of A."""
        return self.a.shape[-1]

    def dimensions(self):
        """A lies along the inputs, B along the outputs."""
        axes = self.axes
        return {
            "a": (*axes.stack, *axes.inputs, RANK),
            "b": (*axes.stack, RANK, *axes.outputs),
            "scaling": (*axes.stack, RANK)[: jnp.ndim(self.scaling)],
        }

    def adapt(self, weight, shared):
        """Formed at each use; the scaling gets no gradient."""
        dims = self.dimensions()
        product = extend.Product(
            Factor(self.a, dims["a"]),
            Factor(self.b, dims["b"]),
            Factor(lax.stop_gradient(self.scaling), dims["scaling"]),
        )
        why = "W0 * (1 + s A B), made here and again for the gradient: factors cost rank times W0"
        return extend.Elementwise((product,), multiplied, why)

    def unmerged(self, weight, shared):
        """W0 out of W0 * (1 + s A B), where that is not zero."""
        [product] = self.adapt(weight, shared).products
        return (weight / (1 + product.delta(weight.ndim))).astype(weight.dtype)


def model(params, tokens):
    """An embedding that is looked up and the head as well, and scanned layers."""
    x = params["embed"][tokens]
    x, _ = lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["layers"])
    return x @ params["embed"].T


def main():
    """Splits, trains, explains, saves, restores and merges; the laws are asserted."""
    of_embed, of_layers, of_data = jax.random.split(jax.random.key(0), 3)
    params = {
        "embed": jax.random.normal(of_embed, (40, 24)) / 5,
        "layers": jax.random.normal(of_layers, (3, 24, 24)) / 5,
    }
    tokens = jax.random.randint(of_data, (16, 12), 0, 40)
    config = jlora.LoraConfig(targets=".", method=HiraWeight, rank=4, alpha=16)
    axes = jlora.trace_axes(model, params, tokens)
    frozen, hira = jlora.split(params, config, jax.random.key(2), axes=axes)
    apply = jlora.lift(model, strict=True)
    assert jnp.array_equal(apply(frozen, hira, tokens), model(params, tokens))
    report = jlora.explain(model, frozen, hira, tokens)
    assert (report.factored, report.formed, report.materialised) == (1, 2, 0)
    print(report)

    tx = jlora.optimizer(optax.adam(1e-2))
    state = tx.init(hira)

    def loss(params, tokens):
        scores = model(params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:]).mean()

    @jax.jit
    def step(hira, state):
        value, grads = jax.value_and_grad(jlora.lift(loss, strict=True), argnums=1)(
            frozen, hira, tokens
        )
        updates, state = tx.update(grads, state, hira)
        return optax.apply_updates(hira, updates), state, value

    losses = []
    for _ in range(60):
        hira, state, value = step(hira, state)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]

    merged = jlora.merge(frozen, hira)
    difference = jnp.abs(model(merged, tokens) - apply(frozen, hira, tokens)).max()
    assert difference < 1e-4
    with tempfile.TemporaryDirectory() as folder:
        jlora.checkpoint.save(f"{folder}/hira", hira, config, base=frozen)
        again, same = jlora.checkpoint.restore(f"{folder}/hira", base=frozen)
    assert same == config
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again, hira))
    print(jlora.summary(frozen, hira))
    print(
        f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; merged and adapted differ by {difference:.0e}"
    )


if __name__ == "__main__":
    main()
