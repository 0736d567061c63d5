"""A small model, and adapters of it that hold one node of each kind."""

import jax
import jax.numpy as jnp
import numpy as np
from laws import trained

import jlora

KEY = jax.random.key(0)
IDS = jax.random.randint(jax.random.key(1), (3, 4), 0, 13)


def normal(*shape, seed=2):
    return jax.random.normal(jax.random.key(seed), shape)


PARAMS = {
    "embed": normal(13, 7),
    "up": {"kernel": normal(7, 11), "bias": normal(11)},
    "down": {"kernel": normal(11, 7)},
    "norm": normal(7),
}


def model(p, ids):
    x = p["embed"][ids]
    hidden = jnp.tanh(x @ p["up"]["kernel"] + p["up"]["bias"])
    return x + hidden @ p["down"]["kernel"] * p["norm"]


def loss(p, ids):
    return (model(p, ids) ** 2).mean()


model, loss = jax.jit(model), jax.jit(loss)
lifted = jax.jit(jlora.lift(model, strict=True))
lifted_loss = jlora.lift(loss, strict=True)


@jax.jit
def gradient_by_hand(lora):
    return jax.grad(lambda lora: loss(jlora.merge(PARAMS, lora), IDS))(lora)


def every_kind(seed=0, dropout=0.0, dtype="float32"):
    """An adapter that holds one node of each kind, and has trained."""
    options = {"rank": 3, "dropout": dropout, "dtype": dtype}
    some = jlora.LoraConfig(
        targets="up/kernel", bias="lora", train="norm", tokens={"embed": (1, 5)}, **options
    )
    other = jlora.LoraConfig(targets="down/kernel", method="dora", **options)
    key = jax.random.key(seed)
    nodes = [jlora.split(PARAMS, config, key)[1] for config in (some, other)]
    return trained({**nodes[0], **nodes[1]}, seed + 1)


LORA = every_kind()
OTHER = every_kind(seed=7)
NAMES = [
    "down/kernel/a", "down/kernel/b", "down/kernel/scaling", "down/kernel/magnitude",
    "embed/delta",
    "norm/value",
    "up/bias/delta", "up/bias/scaling",
    "up/kernel/a", "up/kernel/b", "up/kernel/scaling",
]  # fmt: skip


def assert_same(got, want):
    """Bit for bit, static data too."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.array_equal(one, other)


def blank(tree):
    return jax.tree.map(jnp.zeros_like, tree)
