"""A batch whose rows use different adapters: one network, four weather stations, one product.

    python examples/adapter_per_example.py

A network knows how warm it is at a place, by hour and day of the year. Four other stations are
like it, each in its own way: an adapter each learns them. A batch then mixes rows of all stations.
`vmap` over the adapters' leading axis gives each row its own; the frozen weights are not copied.

It prints

    degrees off     base   its own adapter   another's
    coast            2.8               0.1        11.2
    desert          13.8               0.1        26.8
    summit          12.9               0.1        15.2
    south           10.0               0.1         8.1
    each row as by its own adapter, merged and alone: True
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora

# degrees: the mean, the day's swing, the year's swing; and the hour that is warmest
BASE = (10.0, 4.0, 8.0, 14.0)
STATIONS = {
    "coast": (12.0, 1.5, 5.0, 15.0),
    "desert": (24.0, 11.0, 9.0, 15.0),
    "summit": (-3.0, 3.0, 7.0, 13.0),
    "south": (14.0, 5.0, -8.0, 14.0),  # of the equator: its summer is in January
}


def weather(station, seed, rows=64):
    """((hour, day) as shares of a whole turn (rows, 2), tens of degrees (rows,))."""
    mean, day, year, warmest = station
    x = np.random.default_rng(seed).uniform(0, 1, (rows, 2)).astype(np.float32)
    hours = np.cos(2 * np.pi * (x[:, 0] - warmest / 24))
    days = np.cos(2 * np.pi * (x[:, 1] - 200 / 365))
    return x, ((mean + day * hours + year * days) / 10).astype(np.float32)


def network(params, x):
    """Tens of degrees for each row of x (..., 2)."""
    turned = 2 * jnp.pi * x
    x = jnp.concatenate([jnp.cos(turned), jnp.sin(turned)], -1) @ params["in"]
    for layer in ("first", "second"):
        x = x + jnp.tanh(x @ params[layer]["kernel"] + params[layer]["bias"])
    return x @ params["out"]


def loss(params, batch):
    """The mean squared error."""
    return ((network(params, batch[0]) - batch[1]) ** 2).mean()


def train(loss, tx, tree, station, steps, frozen=()):
    """The tree after so many updates by ``loss(*frozen, tree, batch)``."""
    state = tx.init(tree)

    @jax.jit
    def update(tree, state, frozen, batch):
        gradient = jax.grad(lambda tree: loss(*frozen, tree, batch))(tree)
        changes, state = tx.update(gradient, state, tree)
        return optax.apply_updates(tree, changes), state

    for number in range(steps):
        tree, state = update(tree, state, frozen, weather(station, seed=number))
    return tree


keys = jax.random.split(jax.random.key(0), 4)
params = {
    "in": jax.random.normal(keys[0], (4, 64)) / 2,
    "first": {"kernel": jax.random.normal(keys[1], (64, 64)) / 8, "bias": jnp.zeros(64)},
    "second": {"kernel": jax.random.normal(keys[2], (64, 64)) / 8, "bias": jnp.zeros(64)},
    "out": jax.random.normal(keys[3], (64,)) / 8,
}
params = train(loss, optax.adam(3e-3), params, BASE, steps=400)

config = jlora.LoraConfig(targets="kernel", rank=2, alpha=4, train="bias")
tx = jlora.optimizer(optax.adam(1e-2))
adapters = []
for station in STATIONS.values():
    frozen, lora = jlora.split(params, config, jax.random.key(1))
    adapters.append(train(jlora.lift(loss), tx, lora, station, steps=300, frozen=(frozen,)))

# the mixed batch: for each row an adapter's number
stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
apply = jax.vmap(jlora.lift(network), in_axes=(None, 0, 0))


@jax.jit
def serve(frozen, stacked, numbers, x):
    """The degrees of each row by the adapter of its number."""
    return 10 * apply(frozen, jax.tree.map(lambda leaf: leaf[numbers], stacked), x)


numbers = np.random.default_rng(5).integers(0, len(STATIONS), 400)
tests = [weather(station, seed=9_999, rows=400) for station in STATIONS.values()]
x, rows = tests[0][0], np.arange(400)  # the same hours and days for all
degrees = 10 * np.stack([y for _, y in tests])[numbers, rows]
given = serve(frozen, stacked, numbers, x)
others = serve(frozen, stacked, (numbers + 1) % len(STATIONS), x)
base = 10 * network(params, x)
print("degrees off     base   its own adapter   another's")
for number, name in enumerate(STATIONS):
    of_it = numbers == number
    off = [abs(answers - degrees)[of_it].mean() for answers in (base, given, others)]
    print(f"{name:12} {off[0]:7.1f}   {off[1]:15.1f}   {off[2]:9.1f}")

alone = np.stack([10 * network(jlora.merge(frozen, lora), x) for lora in adapters])
same = np.allclose(given, alone[numbers, rows], atol=1e-3)
print(f"each row as by its own adapter, merged and alone: {same}")
