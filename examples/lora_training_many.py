"""Many adapters trained in one program: which learning rate is best, by one `vmap` over them.

    python examples/lora_training_many.py

A network tells two rings of points apart. The rings are moved, and six adapters learn them side by
side, each with its own learning rate and its own random start. The frozen weights are there once;
one compiled step updates all six. Training one of them alone gives the same adapter.

It prints

      rate   loss before   after
    0.0001          1.48    1.34
    0.0010          1.48    0.14
    0.0030          1.48    0.09
    0.0100          1.48    0.07
    0.0300          1.48    0.03
    0.3000          1.48    0.53
    the fourth, trained alone, is the same: True
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora

RATES = np.float32([1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 3e-1])
STEPS, ROWS = 150, 64


def rings(moved, seed, rows=ROWS):
    """{"x": points (rows, 2), "y": which ring (rows,)}."""
    rng = np.random.default_rng(seed)
    ring = rng.integers(0, 2, rows)
    angle = rng.uniform(0, 2 * np.pi, rows)
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 + ring[:, None])
    points += rng.normal(0, 0.15, points.shape) + moved
    return {"x": points.astype(np.float32), "y": ring}


def network(params, x):
    """The score of the outer ring for each point."""
    for layer in ("first", "second"):
        x = jnp.tanh(x @ params[layer]["kernel"] + params[layer]["bias"])
    return x @ params["out"]


def loss(params, batch):
    """The mean cross-entropy."""
    scores = network(params, batch["x"])
    return optax.sigmoid_binary_cross_entropy(scores, batch["y"]).mean()


@functools.partial(jax.jit, static_argnums=0)
def pretrained(steps, params, batches):
    """The network after so many updates of all its weights."""
    tx = optax.adam(1e-2)

    def update(carry, batch):
        params, state = carry
        changes, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, changes), state), None

    return jax.lax.scan(update, (params, tx.init(params)), batches, length=steps)[0][0]


def stacked_batches(moved, first):
    """All batches of a training, with a leading axis of steps."""
    batches = [rings(moved, seed=first + number) for number in range(STEPS)]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)


keys = jax.random.split(jax.random.key(0), 3)
params = {
    "first": {"kernel": jax.random.normal(keys[0], (2, 64)), "bias": jnp.zeros(64)},
    "second": {"kernel": jax.random.normal(keys[1], (64, 64)) / 8, "bias": jnp.zeros(64)},
    "out": jax.random.normal(keys[2], (64,)) / 8,
}
params = pretrained(STEPS, params, stacked_batches(moved=0.0, first=0))

config = jlora.LoraConfig(targets="second/kernel", rank=4, alpha=4)
start = lambda key: jlora.split(params, config, key)[1]  # noqa: E731
loras = jax.vmap(start)(jax.random.split(jax.random.key(1), len(RATES)))
frozen, _ = jlora.split(params, config, jax.random.key(1))
lifted = jlora.lift(loss)


def step(frozen, lora, state, rate, batch):
    """One update of one adapter; the rate is an argument as the batch is."""
    tx = jlora.optimizer(optax.adam(rate))
    changes, state = tx.update(jax.grad(lifted, argnums=1)(frozen, lora, batch), state, lora)
    return optax.apply_updates(lora, changes), state


states = jax.vmap(jlora.optimizer(optax.adam(1.0)).init)(loras)
together = jax.jit(jax.vmap(step, in_axes=(None, 0, 0, 0, None)))
alone = jax.jit(step)
lora, state = jax.tree.map(lambda leaf: leaf[3], (loras, states))  # the fourth, for comparison
for number in range(STEPS):
    batch = rings(moved=0.8, seed=5_000 + number)
    loras, states = together(frozen, loras, states, RATES, batch)
    lora, state = alone(frozen, lora, state, RATES[3], batch)

test = rings(moved=0.8, seed=9_999, rows=1000)
before = float(loss(params, test))
print(f"{'rate':>6}   loss before   after")
after = jax.vmap(lifted, in_axes=(None, 0, None))(frozen, loras, test)
for rate, its_loss in zip(RATES, after, strict=True):
    print(f"{rate:6.4f}   {before:11.2f}   {its_loss:5.2f}")
differences = jax.tree.map(lambda many, one: abs(many[3] - one).max(), loras, lora)
same = max(jax.tree.leaves(differences)) < 1e-3
print(f"the fourth, trained alone, is the same: {same}")
