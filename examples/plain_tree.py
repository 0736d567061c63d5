"""A dict of arrays and a function: a network that holds a picture, and an adapter for its evening.

    python examples/plain_tree.py

From a point the network says how bright the picture is there. Its three layers lie in one array
and are scanned; each is stored as (out, in). It is trained whole on a picture by day. The adapter
learns the same place by night: lamps are lit and the sky is dark.

It prints

    by day: error 0.0005
    layers/w has Axes(inputs=(2,), outputs=(1,), stack=(0,))
    by night: error 0.3904 before, 0.0007 after
    trainable 1,728 of 14,272 parameters (12.108 %) in 2 adapted leaves of rank 4; 6.91 kB beside 50.18 kB frozen
"""  # noqa: E501

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora

SIZE, WIDTH, LAYERS = 40, 64, 3


def picture(night):
    """Brightness, (size, size): a sky, a house with two windows, a hill."""
    y, x = np.mgrid[0 : 1 : SIZE * 1j, 0 : 1 : SIZE * 1j]
    sky = 0.15 + 0.1 * y if night else 0.95 - 0.3 * y
    image = np.where(y > 0.75 + 0.1 * np.sin(5 * x), 0.05 if night else 0.5, sky)
    house = (abs(x - 0.5) < 0.25) & (abs(y - 0.65) < 0.2)
    image = np.where(house, 0.1 if night else 0.7, image)
    for middle in (0.38, 0.62):
        window = (abs(x - middle) < 0.06) & (abs(y - 0.62) < 0.06)
        image = np.where(window, 1.0 if night else 0.3, image)
    return image.astype(np.float32)


AXIS = np.linspace(0, 1, SIZE, dtype=np.float32)
POINTS = np.stack(np.meshgrid(AXIS, AXIS), -1).reshape(-1, 2)
WAVES = np.random.default_rng(0).normal(0, 2.5, (2, WIDTH // 2)).astype(np.float32)


def network(params, points):
    """The brightness at each point (points, 2)."""
    turned = 2 * jnp.pi * points @ WAVES
    x = jnp.concatenate([jnp.cos(turned), jnp.sin(turned)], -1)
    layer = lambda x, each: (x + jnp.tanh(x @ each["w"].T + each["b"]), None)  # noqa: E731
    x, _ = jax.lax.scan(layer, x, params["layers"])
    return x @ params["out"]


def loss(params, image):
    """The mean squared error over the picture."""
    return ((network(params, POINTS) - image.reshape(-1)) ** 2).mean()


def train(loss, tx, tree, image, steps, frozen=()):
    """The tree after so many updates by ``loss(*frozen, tree, image)``: one program."""

    @jax.jit
    def all_updates(tree, frozen):
        def update(carry, _):
            tree, state = carry
            gradient = jax.grad(lambda tree: loss(*frozen, tree, image))(tree)
            changes, state = tx.update(gradient, state, tree)
            return (optax.apply_updates(tree, changes), state), None

        return jax.lax.scan(update, (tree, tx.init(tree)), length=steps)[0][0]

    return all_updates(tree, frozen)


keys = jax.random.split(jax.random.key(1))
params = {
    "layers": {
        "w": jax.random.normal(keys[0], (LAYERS, WIDTH, WIDTH)) / WIDTH**0.5,
        "b": jnp.zeros((LAYERS, WIDTH)),
    },
    "out": jax.random.normal(keys[1], (WIDTH,)) / WIDTH**0.5,
}
params = train(loss, optax.adam(3e-3), params, picture(night=False), steps=400)
print(f"by day: error {loss(params, picture(night=False)):.4f}")

axes = jlora.trace_axes(network, params, POINTS)
print(f"layers/w has {axes['layers/w']}")
config = jlora.LoraConfig(targets="layers/w", rank=4, alpha=8, train="layers/b")
frozen, lora = jlora.split(params, config, jax.random.key(2), axes=axes)
tx = jlora.optimizer(optax.adam(1e-2))
lora = train(jlora.lift(loss), tx, lora, picture(night=True), steps=300, frozen=(frozen,))
tuned = jlora.merge(frozen, lora)
before, after = (loss(tree, picture(night=True)) for tree in (params, tuned))
print(f"by night: error {before:.4f} before, {after:.4f} after")
print(jlora.summary(frozen, lora))
