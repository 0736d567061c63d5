"""How long tracing takes: an unrolled 32-layer transformer, the model alone and lifted.

    python -m benchmarks.tracing

Both are traced in turn in one process; medians and their ratio are printed. Nothing is compiled.
"""

import argparse
import statistics

import flax.linen as nn
import jax
import jax.numpy as jnp

import jlora
from benchmarks._shared.table import Table, add_save, versions
from benchmarks._shared.turns import seconds_in_turns

LAYERS, WIDTH, ROUNDS = 32, 64, 8


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


def trace(fn, *args):
    """Traces a fresh function, so that none is remembered."""
    jax.make_jaxpr(lambda *args: fn(*args))(*args)


def main():
    """Prints the medians, the ratio and what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_save(parser)
    given = parser.parse_args()
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
        "model": lambda: trace(loss, params, tokens),
        "lifted": lambda: trace(lifted, frozen, lora, tokens),
        "model, gradient": lambda: trace(jax.grad(loss), params, tokens),
        "lifted, gradient": lambda: trace(jax.grad(lifted, argnums=1), frozen, lora, tokens),
    }
    times = seconds_in_turns(cases, ROUNDS)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"jax {jax.__version__}, {LAYERS} layers unrolled, {len(lora)} adapted leaves")
    table = Table("traced", "the model, seconds", "lifted, seconds", "lifted / the model")
    for title, of in (("forward", ""), ("with the gradient", ", gradient")):
        alone, lifted_too = medians[f"model{of}"], medians[f"lifted{of}"]
        table.row(title, f"{alone:.3f}", f"{lifted_too:.3f}", f"{lifted_too / alone:.2f}")
    table.keep("tracing", given.save, versions("jax", "flax"))


if __name__ == "__main__":
    main()
