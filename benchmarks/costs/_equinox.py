"""Equinox: an MLP; by hand, and the LoRA example of quax."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
from jax import lax

from benchmarks.costs._ways import KEY, RANK, Way, general_ways, installed, squared


def equinox_ways(x: Any) -> dict[str, Way]:
    """Of an Equinox MLP, with quax's LoRA example where it is installed."""
    mlp = eqx.filter_eval_shape(eqx.nn.MLP, 256, 256, 1024, 4, key=KEY)
    arrays, static = eqx.partition(mlp, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def apply(arrays, x):
        return jax.vmap(eqx.combine(arrays, static))(x)

    ways = general_ways(apply, arrays, x, targets="weight")

    def one_by_hand(factors, frozen, x):
        for at, layer in enumerate(frozen["w"].layers):
            a, b = factors[f"layers/{at}/weight"]
            b = b * lax.stop_gradient(frozen["scalings"][f"layers/{at}/weight"])
            x = layer.weight @ x + layer.bias + (x @ a) @ b
            x = x if at == 4 else jax.nn.relu(x)
        return x

    def by_hand(factors, frozen, x):
        return squared(jax.vmap(one_by_hand, in_axes=(None, None, 0))(factors, frozen, x))

    ways["by hand"] = dataclasses.replace(ways["jlora.lift"], loss=by_hand)
    if quax := installed("quax"):
        from quax.examples import lora as example

        adapted = eqx.filter_eval_shape(example.loraify, mlp, rank=RANK, key=KEY)
        is_lora = lambda leaf: isinstance(leaf, example.LoraArray)  # noqa: E731
        where = jax.tree.map(
            lambda leaf: (
                eqx.tree_at(lambda w: (w.a, w.b), jax.tree.map(lambda _: False, leaf), (True, True))
                if is_lora(leaf) else False
            ),
            adapted,
            is_leaf=is_lora,
        )  # fmt: skip
        trained, rest = eqx.partition(adapted, where)
        kept, fixed = eqx.partition(rest, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

        def loss(trained, kept, x):
            model = eqx.combine(trained, kept, fixed)
            return squared(jax.vmap(quax.quaxify(model))(x))

        ways["quax's example"] = Way(trained, kept, loss)
    return ways
