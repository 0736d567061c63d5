"""VeRA as a method of your own: one frozen A and B for all layers, two trained vectors for each.

    python examples/vera.py

``W + diag(b) B diag(d) A`` (Kopiczko et al. 2023, arXiv 2310.11454, eq. 2; here A and B act from
the right, as JAX kernels do). A and B are as large as the largest layer needs and are sliced for
the others, as PEFT does; they stand once in the adapter, under ``shared/vera_A`` and
``shared/vera_B``. Only public names of jlora are used.

It prints

    ...
    trainable 333 of 2,258 parameters (14.748 %) in 2 adapted leaves of rank 64; 1.33 kB beside 7.70 kB frozen
    loss 2.42 -> 0.46; merged and adapted differ by 1e-06
"""  # noqa: E501

import dataclasses
import math
import tempfile
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from jlora import extend
from jlora.extend import RANK, Factor


class VeraFormat(extend.PeftFormat):
    """PEFT's ``peft_type="VERA"``."""

    peft_type = "VERA"
    defaults: ClassVar[dict] = {
        "r": 256,
        "vera_dropout": 0.0,
        "d_initial": 0.1,
        "fan_in_fan_out": False,
        "bias": "none",
        "init_weights": True,
        "projection_prng_key": 0,
        "save_projection": True,
    }

    def settings(self, config, shared):
        """The rank and the first d."""
        return {"r": config.rank, "d_initial": config.all_options["d_initial"]}

    def config(self, settings):
        """The same, the other way; what this method does not have is refused."""
        for name in ("vera_dropout", "fan_in_fan_out", "bias", "save_projection"):
            if settings[name] != self.defaults[name]:
                raise ValueError(f"{name} is {settings[name]!r}: expected {self.defaults[name]!r}")
        return {"rank": settings["r"], "options": {"d_initial": settings["d_initial"]}}

    def shared_tensors(self, shared):
        """PEFT's A is (rank, in) and its B (out, rank)."""
        return {"vera_A": shared["vera_A"].T, "vera_B": shared["vera_B"].T}

    def read_shared(self, tensors):
        """The two, as the nodes use them."""
        return {name: extend.SharedFactor(tensors[name].T) for name in ("vera_A", "vera_B")}

    def tensors(self, leaf):
        """The two vectors of a module."""
        return {"vera_lambda_d": (leaf.rank,), "vera_lambda_b": (math.prod(leaf.outputs),)}

    def node(self, leaf, tensors):
        """The node of all layers of a leaf."""
        b = tensors["vera_lambda_b"].reshape(*leaf.stack, *leaf.outputs)
        return VeraWeight(tensors["vera_lambda_d"], b, leaf.axes, leaf.shape)


@extend.register("vera")
@dataclasses.dataclass(frozen=True)
class VeraWeight(extend.Method):
    """The two vectors of one leaf."""

    d: jax.Array  # (*stack, rank): scales A's columns
    b: jax.Array  # (*stack, *out): scales B's columns; zero at the start
    axes: jlora.Axes = dataclasses.field(metadata={"static": True})
    weight_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    trainable: ClassVar = ("d", "b")
    options: ClassVar = {"d_initial": 0.1}
    peft: ClassVar = VeraFormat()

    @classmethod
    def problems(cls, config):
        """What the options may be."""
        d = config.all_options["d_initial"]
        if not isinstance(d, (int, float)) or not d > 0:
            yield f"d_initial is {d!r}: expected a number above 0"

    @classmethod
    def largest_rank(cls, inputs, outputs):
        """Any: A and B are random, and only the vectors train."""
        return None

    @classmethod
    def shared(cls, leaves, key):
        """A and B, as large as the largest leaf needs; drawn as PEFT draws them."""
        rank = max(leaf.rank for leaf in leaves)
        inputs = max(math.prod(leaf.inputs) for leaf in leaves)
        outputs = max(math.prod(leaf.outputs) for leaf in leaves)
        uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        of_a, of_b = jax.random.split(jax.random.fold_in(key, 7))
        return {
            "vera_A": extend.SharedFactor(uniform(of_a, (inputs, rank))),
            "vera_B": extend.SharedFactor(uniform(of_b, (rank, outputs))),
        }

    @classmethod
    def start(cls, leaf):
        """B's scale is zero, so that the adapted function is the base function."""
        d = jnp.full((*leaf.stack, leaf.rank), leaf.options["d_initial"])
        return cls(d, jnp.zeros((*leaf.stack, *leaf.outputs)), leaf.axes, leaf.shape), None

    @property
    def rank(self):
        """The length of d."""
        return self.d.shape[-1]

    @property
    def shape(self):
        """Of the weight; the fields do not tell its inputs."""
        return self.weight_shape

    def dimensions(self):
        """d lies along the stack and the rank, b along the stack and the outputs."""
        stack = self.axes.stack
        return {"d": (*stack, RANK), "b": (*stack, *self.axes.outputs)}

    def part(self, dim, at):
        """A layer of a stack; the shared factors are whole for each."""
        size = tuple(1 if d == dim else n for d, n in enumerate(self.weight_shape))
        return dataclasses.replace(super().part(dim, at), weight_shape=size)

    def adapt(self, weight, shared):
        """``b * scaling * A B`` with d for the scaling: A and B are not copied by layer."""
        inputs = [self.weight_shape[dim] for dim in self.axes.inputs]
        outputs = [self.weight_shape[dim] for dim in self.axes.outputs]
        a = shared["vera_A"][: math.prod(inputs), : self.rank].reshape(*inputs, self.rank)
        b = shared["vera_B"][: self.rank, : math.prod(outputs)].reshape(self.rank, *outputs)
        dims = self.dimensions()
        product = extend.Product(
            Factor(a, (*self.axes.inputs, RANK)),
            Factor(b, (RANK, *self.axes.outputs)),
            scaling=Factor(self.d, dims["d"]),
            gain=Factor(self.b, dims["b"]),
        )
        return extend.Factored((product,))

    def unmerged(self, weight, shared):
        """W out of W + delta."""
        [product] = self.adapt(weight, shared).products
        return (weight - product.delta(weight.ndim)).astype(weight.dtype)

    def misfit(self, shape, shared):
        """What is wrong with the leaf, or with the shared factors."""
        needed = [math.prod(self.weight_shape[d] for d in dims)
                  for dims in (self.axes.inputs, self.axes.outputs)]  # fmt: skip
        for name, least in (("vera_A", (needed[0], self.rank)), ("vera_B", (self.rank, needed[1]))):
            have = np.shape(shared.get(name))
            if len(have) != 2 or have < least or have[1] < least[1]:
                return f"shared/{name} is {have or 'missing'}: expected at least {least}"
        return super().misfit(shape, shared)

    def peft_form(self):
        """The two vectors of each module."""
        b = self.b.reshape(*self.d.shape[:-1], -1)
        return extend.Own({"vera_lambda_d": self.d, "vera_lambda_b": b})


class Net(nn.Module):
    """Scanned layers and a head of another size: one A and B serve both."""

    @nn.compact
    def __call__(self, x):
        """Scores, (batch, 5)."""

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + nn.tanh(nn.Dense(24)(x)), None

        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(5, name="head")(x)


def main():
    """Splits, trains, explains, saves, restores and merges; the laws are asserted."""
    model, x = Net(), jax.random.normal(jax.random.key(0), (64, 24))
    labels = jnp.argmax(x @ jax.random.normal(jax.random.key(9), (24, 5)), -1)
    params = model.init(jax.random.key(1), x)
    config = jlora.LoraConfig(
        targets="kernel", method=VeraWeight, rank=64, options={"d_initial": 0.5}
    )
    axes = jlora.trace_axes(model.apply, params, x)
    frozen, vera = jlora.split(params, config, jax.random.key(2), axes=axes)
    apply = jlora.lift(model.apply, strict=True)  # nothing is merged on the way
    assert jnp.array_equal(apply(frozen, vera, x), model.apply(params, x))  # the start is the base
    print(jlora.explain(model.apply, frozen, vera, x))
    print(jlora.summary(frozen, vera))

    tx = jlora.optimizer(optax.adam(3e-2))
    state, start = tx.init(vera), vera

    @jax.jit
    def step(vera, state):
        def loss(vera):
            scores = apply(frozen, vera, x)
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

        value, grads = jax.value_and_grad(loss)(vera)
        updates, state = tx.update(grads, state, vera)
        return optax.apply_updates(vera, updates), state, value

    losses = []
    for _ in range(60):
        vera, state, value = step(vera, state)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    for name in ("shared/vera_A", "shared/vera_B"):  # what does not train does not change
        assert jnp.array_equal(vera[name].value, start[name].value)

    merged = jlora.merge(frozen, vera)
    difference = jnp.abs(model.apply(merged, x) - apply(frozen, vera, x)).max()
    assert difference < 1e-4
    back = jlora.unmerge(merged, vera)
    assert all(
        jnp.allclose(a, b, atol=1e-6)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(frozen), strict=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        jlora.checkpoint.save(f"{folder}/vera", vera, config, base=frozen)
        again, same = jlora.checkpoint.restore(f"{folder}/vera", base=frozen)
    assert same == config
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again, vera))
    print(
        f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; merged and adapted differ by {difference:.0e}"
    )


if __name__ == "__main__":
    main()
