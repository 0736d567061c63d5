"""Law 4 in NNX, Equinox and Haiku: a step costs what LoRA written into their layers costs.

Each library has its own way to put x W + (x A) B into a layer; nothing of `lift` is in them.
"""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from laws import adapted, check_costs, check_law_1

import jlora

X = jax.random.normal(jax.random.key(1), (40, 48))


def factors(node):
    """A, and B times scaling, which does not train."""
    return node.a, node.b * lax.stop_gradient(node.scaling)


def check(apply, by_hand, params, targets, leaves):
    axes = jlora.trace_axes(apply, params, X)
    frozen, lora = adapted(params, axes, targets=targets, rank=4)
    assert len(lora) == leaves
    check_law_1(apply, frozen, lora, X, factored=leaves, tolerance=1e-4)

    def merged(frozen, lora, x):
        return apply(jlora.merge(frozen, lora), x)

    check_costs(jlora.lift(apply, strict=True), by_hand, merged, frozen, lora, X)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(48, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 48, decode=False, rngs=rngs)
        self.up = nnx.Linear(48, 192, rngs=rngs)
        self.down = nnx.Linear(192, 48, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


def test_an_nnx_step_costs_what_it_costs_by_hand():
    graph, params = nnx.split(NnxBlock(nnx.Rngs(0)), nnx.Param)

    def apply(params, x):
        return nnx.merge(graph, params)(x)

    def by_hand(frozen, lora, x):
        block = nnx.merge(graph, frozen)
        owners = {"": block, "attention/": block.attention}
        names = {"": ("up", "down"), "attention/": ("query", "key", "value", "out")}
        for prefix, owner in owners.items():
            for name in names[prefix]:
                [node] = [lora[path] for path in lora if path.startswith(f"{prefix}{name}/kernel")]
                layer = getattr(owner, name)
                setattr(owner, name, nnx.static(with_thin_products(layer, *factors(node))))
        return block(x)

    def with_thin_products(layer, a, b):
        """x W + bias, and then (x A) B."""

        def call(x, **options):
            rows = jnp.tensordot(x, a, a.ndim - 1)
            return layer(x, **options) + jnp.tensordot(rows, b, 1)

        return call

    check(apply, by_hand, params, "kernel", 6)


class EquinoxBlock(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __call__(self, x):
        x = x + self.attention(x, x, x)
        return x + jax.vmap(self.mlp)(x)


class LinearByHand(eqx.Module):
    """W x + bias + B' A' x, as Equinox has W: from the left."""

    linear: eqx.nn.Linear
    a: jax.Array  # (in, rank)
    b: jax.Array  # (rank, out)

    def __call__(self, x, key=None):
        return self.linear(x) + self.b.T @ (self.a.T @ x)


def test_an_equinox_step_costs_what_it_costs_by_hand():
    keys = jax.random.split(jax.random.key(0))
    block = EquinoxBlock(
        eqx.nn.MultiheadAttention(4, 48, key=keys[0]),
        eqx.nn.MLP(48, 48, 192, depth=1, key=keys[1]),
    )
    params, static = eqx.partition(block, eqx.is_array)

    def apply(params, x):
        return eqx.combine(params, static)(x)

    def by_hand(frozen, lora, x):
        def layer(path, module):
            name = jax.tree_util.keystr(path, simple=True, separator="/") + "/weight"
            return LinearByHand(module, *factors(lora[name])) if name in lora else module

        block = eqx.combine(frozen, static)
        is_linear = lambda node: isinstance(node, eqx.nn.Linear)  # noqa: E731
        return jax.tree_util.tree_map_with_path(layer, block, is_leaf=is_linear)(x)

    check(apply, by_hand, params, "weight", 6)


def test_a_haiku_step_costs_what_it_costs_by_hand():
    def block(x):
        init = hk.initializers.VarianceScaling(1.0)
        x = x + hk.MultiHeadAttention(4, 12, w_init=init, with_bias=False)(x, x, x)
        return x + hk.nets.MLP([192, 48], with_bias=False)(x)

    model = hk.without_apply_rng(hk.transform(block))
    params = model.init(jax.random.key(0), X)

    def by_hand(frozen, lora, x):
        def layer(next_f, args, kwargs, context):
            out = next_f(*args, **kwargs)
            name = f"{context.module.module_name}/w"
            if context.method_name != "__call__" or name not in lora:
                return out
            a, b = factors(lora[name])
            return out + (args[0] @ a) @ b

        def adapted_block(x):
            with hk.intercept_methods(layer):
                return block(x)

        return hk.without_apply_rng(hk.transform(adapted_block)).apply(frozen, x)

    check(model.apply, by_hand, params, "/w$", 6)
