"""Flax NNX: two blocks; by hand, Flax's own LoRA layers, and qwix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.costs._ways import RANK, Way, general_ways, installed, squared


class NnxBlock(nnx.Module):
    """The same in NNX; ``linear`` makes a layer."""

    def __init__(self, width: int, heads: int, linear: Callable[..., Any], rngs: nnx.Rngs):
        self.heads = heads
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, x):
        normed = self.norms[0](x)
        parts = [
            layer(normed).reshape(*x.shape[:2], self.heads, -1)
            for layer in (self.query, self.key, self.value)
        ]
        x = x + self.out(jax.nn.dot_product_attention(*parts).reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class NnxLoraLinear(nnx.Module):
    """x W + bias, and then (x A) B."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.linear = nnx.Linear(inputs, outputs, rngs=rngs)
        self.a = nnx.LoRAParam(jax.random.normal(rngs.params(), (inputs, RANK)))
        self.b = nnx.LoRAParam(jnp.zeros((RANK, outputs)))

    def __call__(self, x):
        return self.linear(x) + (x @ self.a[...]) @ self.b[...]


class NnxTransformer(nnx.Module):
    """Two blocks."""

    def __init__(self, linear: Callable[..., Any], rngs: nnx.Rngs):
        self.blocks = nnx.List([NnxBlock(256, 4, linear, rngs) for _ in range(2)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def nnx_ways(x: Any) -> dict[str, Way]:
    """Of an NNX model, with Flax's own LoRA layers, and qwix where it is installed."""

    def parts(make: Callable[[], nnx.Module]) -> tuple[Any, Any, Any]:
        graph, lora, rest = nnx.split(nnx.eval_shape(make), nnx.LoRAParam, ...)
        return graph, lora, rest

    def plain():
        rngs = nnx.Rngs(0)
        return NnxTransformer(lambda i, o: nnx.Linear(i, o, rngs=rngs), rngs)

    def by_hand():
        rngs = nnx.Rngs(0)
        return NnxTransformer(lambda i, o: NnxLoraLinear(i, o, rngs), rngs)

    def flax_lora():
        rngs = nnx.Rngs(0)
        return NnxTransformer(lambda i, o: nnx.LoRALinear(i, o, lora_rank=RANK, rngs=rngs), rngs)

    def way(make):
        graph, lora, rest = parts(make)
        return Way(lora, rest, lambda lora, rest, x: squared(nnx.merge(graph, lora, rest)(x)))

    graph, params = nnx.split(nnx.eval_shape(plain))
    ways = general_ways(lambda p, x: nnx.merge(graph, p)(x), params, x)
    ways["by hand"] = way(by_hand)
    ways["Flax's nnx.LoRALinear"] = way(flax_lora)
    if qwix := installed("qwix"):
        rule = qwix.LoraRule(module_path=".*(query|key|value|out|up|down)", rank=RANK, alpha=16.0)

        def with_qwix():
            rngs, zeros = nnx.Rngs(1), jnp.zeros(x.shape)
            return qwix.apply_lora_to_model(plain(), qwix.LoraProvider([rule]), zeros, rngs=rngs)

        ways["qwix"] = way(with_qwix)
    return ways
