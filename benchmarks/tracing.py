"""How long tracing takes: an unrolled 32-layer transformer, the model alone and lifted.

    python benchmarks/tracing.py

Both are traced in turn in one process; medians and their ratio are printed. Nothing is compiled.
"""

import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

import jlora

LAYERS, WIDTH, ROUNDS = 32, 64, 9


class Model(nn.Module):
    """Blocks of attention and MLP, one after the other, and a tied head."""

    @nn.compact
    def __call__(self, tokens):
        """Scores over the vocabulary, (batch, length, 256)."""
        embed = nn.Embed(256, WIDTH)
        x = embed(tokens)
        for _ in range(LAYERS):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
        return embed.attend(x)


def seconds(fn, *args):
    """The time of one trace; a fresh function, so that none is remembered."""
    began = time.perf_counter()
    jax.make_jaxpr(lambda *args: fn(*args))(*args)
    return time.perf_counter() - began


def main():
    """Prints the medians, the ratio and what was measured."""
    model, tokens = Model(), jnp.zeros((2, 16), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    axes = jlora.trace_axes(model.apply, params, tokens)
    config = jlora.LoraConfig(targets="kernel")
    frozen, lora = jax.eval_shape(
        lambda params: jlora.split(params, config, jax.random.key(0), axes=axes), params
    )

    def loss(params, tokens):
        return model.apply(params, tokens).mean()

    def lifted(frozen, lora, tokens):
        return jlora.lift(loss, strict=True)(frozen, lora, tokens)

    cases = {
        "model": lambda: seconds(loss, params, tokens),
        "lifted": lambda: seconds(lifted, frozen, lora, tokens),
        "model, gradient": lambda: seconds(jax.grad(loss), params, tokens),
        "lifted, gradient": lambda: seconds(jax.grad(lifted, argnums=1), frozen, lora, tokens),
    }
    times = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, run in cases.items():
            times[name].append(run())
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"jax {jax.__version__}, {LAYERS} layers unrolled, {len(lora)} adapted leaves")
    for name, value in medians.items():
        print(f"{name:<18}{value:8.3f} s")
    print(f"lifted / model            {medians['lifted'] / medians['model']:.2f}")
    print(
        f"lifted / model, gradient  {medians['lifted, gradient'] / medians['model, gradient']:.2f}"
    )


if __name__ == "__main__":
    main()
