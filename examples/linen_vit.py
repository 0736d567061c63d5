"""A vision transformer in Flax linen: it reads digits, and its adapter learns to read letters.

    python examples/linen_vit.py

An image shows a display of seven bars, moved and noisy. The network is trained whole on the digits
0 to 9. Ten letters then take their place: once for a fresh head alone, and once for a fresh head
beside an adapter of the attention and the MLPs. Attention's kernels have three dimensions;
`trace_axes` reads from the model which of them are inputs.

It prints

    digits, trained whole: 97 % right
    letters, head alone: 590 parameters train
      10 % right before, 73 % after
    letters, head and adapter: 7,402 parameters train
      10 % right before, 94 % after
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora

# a is the top bar, b to f go round by the right, g is the middle
DIGITS = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
LETTERS = (  # A C E F H J L P U Y
    *("abcefg", "adef", "adefg", "aefg", "bcefg", "bcde", "def", "abefg", "bcdef", "bcdfg"),
)
SIZE, PATCH, WIDTH, HEADS, LAYERS, ROWS = 16, 4, 48, 4, 2, 32

BARS = np.zeros((7, SIZE, SIZE), np.float32)
BARS[0, 2:4, 5:10] = BARS[1, 3:8, 9:11] = BARS[2, 8:13, 9:11] = BARS[3, 12:14, 5:10] = 1
BARS[4, 8:13, 4:6] = BARS[5, 3:8, 4:6] = BARS[6, 7:9, 5:10] = 1


def images(shapes, seed):
    """(images (rows, size, size, 1), classes (rows,))."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, len(shapes), ROWS)
    drawn = [
        np.roll(BARS[["abcdefg".index(bar) for bar in shapes[which]]].max(0), moved, (0, 1))
        for which, moved in zip(classes, rng.integers(-2, 3, (ROWS, 2)), strict=True)
    ]
    noisy = np.stack(drawn) + rng.normal(0, 0.2, (ROWS, SIZE, SIZE))
    return noisy[..., None].astype(np.float32), classes


class ViT(nn.Module):
    """Patches with learned places, blocks of attention and MLP, scores of the mean patch."""

    @nn.compact
    def __call__(self, x):
        """The scores, (rows, classes)."""
        x = nn.Conv(WIDTH, (PATCH, PATCH), (PATCH, PATCH), name="patches")(x)
        x = x.reshape(len(x), -1, WIDTH)
        x = x + self.param("places", nn.initializers.normal(0.5), x.shape[1:])
        for layer in range(LAYERS):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(HEADS, name=f"attention_{layer}")(y)
            y = nn.gelu(nn.Dense(4 * WIDTH, name=f"up_{layer}")(nn.LayerNorm()(x)))
            x = x + nn.Dense(WIDTH, name=f"down_{layer}")(y)
        return nn.Dense(10, name="head")(nn.LayerNorm()(x.mean(1)))


model = ViT()


def loss(params, batch):
    """The mean cross-entropy."""
    scores = model.apply(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


def train(loss, tx, tree, shapes, steps, frozen=()):
    """The tree after so many updates by ``loss(*frozen, tree, batch)``."""

    @jax.jit
    def update(tree, state, frozen, batch):
        gradient = jax.grad(lambda tree: loss(*frozen, tree, batch))(tree)
        changes, state = tx.update(gradient, state, tree)
        return optax.apply_updates(tree, changes), state

    state = tx.init(tree)
    for number in range(steps):
        tree, state = update(tree, state, frozen, images(shapes, seed=number))
    return tree


@jax.jit
def right(params, batch):
    """The share of rows whose best score is their class's."""
    return (model.apply(params, batch[0]).argmax(-1) == batch[1]).mean()


def accuracy(params, shapes):
    """In percent, over images that no training sees."""
    return 100 * np.mean([right(params, images(shapes, seed=10_000 + n)) for n in range(16)])


params = model.init(jax.random.key(0), images(DIGITS, seed=0)[0])
params = train(loss, optax.adam(2e-3), params, DIGITS, steps=250)
print(f"digits, trained whole: {accuracy(params, DIGITS):.0f} % right")

params["params"]["head"] = jax.tree.map(jnp.zeros_like, params["params"]["head"])  # a fresh one
axes = jlora.trace_axes(model.apply, params, images(LETTERS, seed=0)[0])
configs = {  # a head of ten classes has rank 10 at most: with that, all of it trains
    "head alone": jlora.LoraConfig(targets="head/kernel", train="head/bias", rank=10),
    "head and adapter": jlora.LoraConfig(
        targets="attention.*kernel|up.*kernel|down.*kernel", train="head", rank=4, alpha=8
    ),
}
for name, config in configs.items():
    frozen, lora = jlora.split(params, config, jax.random.key(1), axes=axes)
    tx = jlora.optimizer(optax.adam(5e-3))
    lora = train(jlora.lift(loss), tx, lora, LETTERS, steps=150, frozen=(frozen,))
    tuned = jlora.merge(frozen, lora)
    print(f"letters, {name}: {jlora.summary(frozen, lora).trainable:,} parameters train")
    print(
        f"  {accuracy(params, LETTERS):.0f} % right before, {accuracy(tuned, LETTERS):.0f} % after"
    )
