"""Flax linen: a transformer, unrolled or scanned, a ViT; by hand, and qwix."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.costs._ways import KEY, RANK, Way, general_ways, installed, squared


class Block(nn.Module):
    """Attention and MLP, each on its normed input and added to it."""

    heads: int

    @nn.compact
    def __call__(self, x):
        normed = nn.LayerNorm()(x)
        width, heads = x.shape[-1], self.heads

        def split_heads(name):
            return nn.Dense(width, name=name)(normed).reshape(*x.shape[:2], heads, -1)

        mixed = jax.nn.dot_product_attention(*map(split_heads, ("query", "key", "value")))
        x = x + nn.Dense(width, name="out")(mixed.reshape(x.shape))
        hidden = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(width, name="down")(hidden)


class Transformer(nn.Module):
    """A language model of tokens, or a classifier of images where they have four dimensions."""

    layers: int
    scanned: bool
    width: int = 256
    heads: int = 4
    outputs: int = 512

    @nn.compact
    def __call__(self, x):
        if x.ndim == 4:  # a ViT
            x = nn.Conv(self.width, (16, 16), strides=16, padding="VALID")(x)
            x = x.reshape(len(x), -1, self.width)
        else:
            x = nn.Embed(self.outputs, self.width)(x)
        if self.scanned:
            body = nn.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            x, _ = body(Block(self.heads), x, None)
        else:
            for _ in range(self.layers):
                x = Block(self.heads)(x)
        return nn.Dense(self.outputs, name="head")(nn.LayerNorm()(x))


def linen_by_hand(model: nn.Module, way: Way) -> Way:
    """x W + bias, and then (x A) B, written into each layer: A and B beside its kernel."""

    def layer_by_hand(next_fun, args, kwargs, context):
        layer = context.module
        if not isinstance(layer, nn.Dense | nn.Conv) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        weights = layer.variables["params"]
        if "lora_a" not in weights:
            return next_fun(*args, **kwargs)
        [x] = args
        if isinstance(layer, nn.Dense):
            product = jnp.matmul
        else:
            product = functools.partial(
                lax.conv_general_dilated,
                window_strides=(layer.strides,) * 2,
                padding=layer.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        out = product(x, weights["kernel"])
        out = out + weights["bias"] if layer.use_bias else out
        return out + product(x, weights["lora_a"]) @ weights["lora_b"]

    def loss(factors, frozen, x):
        flat = dict(traverse.flatten_dict(frozen["w"], sep="/"))
        for path, (a, b) in factors.items():
            folder = path.removesuffix("/kernel")
            scaling = lax.stop_gradient(frozen["scalings"][path])
            flat |= {f"{folder}/lora_a": a, f"{folder}/lora_b": scaling * b}
        with nn.intercept_methods(layer_by_hand):
            tree = traverse.unflatten_dict(flat, sep="/")
            return squared(model.apply({"params": tree}, x))  # type: ignore

    return dataclasses.replace(way, loss=loss)


def linen_ways(model: nn.Module, x: Any) -> dict[str, Way]:
    """Of a linen model, with qwix where it is installed."""
    params = jax.eval_shape(model.init, KEY, x)["params"]
    ways = general_ways(lambda p, x: model.apply({"params": p}, x), params, x)
    ways["by hand"] = linen_by_hand(model, ways["jlora.lift"])
    if qwix := installed("qwix"):
        names = "|".join({p.split("/")[-2] for p in ways["jlora.lift"].trained})
        rule = qwix.LoraRule(module_path=f".*({names})", rank=RANK, alpha=16.0)
        adapted = qwix.apply_lora_to_model(model, qwix.LoraProvider([rule]))
        flat = traverse.flatten_dict(jax.eval_shape(adapted.init, KEY, x)["params"])
        trained = {path: leaf for path, leaf in flat.items() if "lora" in path[-1]}
        frozen = {path: leaf for path, leaf in flat.items() if path not in trained}

        def loss(trained, frozen, x):
            params = traverse.unflatten_dict({**frozen, **trained})
            return squared(adapted.apply({"params": params}, x))

        ways["qwix"] = Way(trained, frozen, loss)
    return ways
