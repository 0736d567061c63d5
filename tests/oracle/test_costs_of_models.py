"""Law 4 on models as people write them: a step costs what LoRA written into the layers costs.

The hand-written step puts x W + (x A) B into each linen layer by an interceptor: nothing of `lift`
is in it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from laws import adapted, check_costs, check_law_1

import jlora


class EncoderBlock(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        hidden = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(hidden)


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(211, 48)(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.1), (64, 48))[: tokens.shape[1]]
        for _ in range(3):
            x = EncoderBlock(4)(x)
        return nn.Dense(211)(nn.LayerNorm()(x))


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(48, (8, 8), strides=8, padding="VALID")(images)
        x = x.reshape(len(x), -1, 48)
        token = self.param("token", nn.initializers.zeros, (1, 1, 48))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 48)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.1), (1, x.shape[1], 48))
        for _ in range(3):
            x = EncoderBlock(4)(x)
        return nn.Dense(13)(nn.LayerNorm()(x)[:, 0])


class ResNetBlock(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.BatchNorm(use_running_average=True)  # noqa: E731
        y = nn.Conv(self.width, (3, 3), strides=self.stride, use_bias=False)(x)
        y = nn.Conv(self.width, (3, 3), use_bias=False)(nn.relu(norm()(y)))
        if x.shape != y.shape:
            x = norm()(nn.Conv(self.width, (1, 1), strides=self.stride, use_bias=False)(x))
        return nn.relu(x + norm()(y))


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(24, (7, 7), strides=2)(images))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for width, stride in ((24, 1), (48, 2), (96, 2)):
            x = ResNetBlock(width, stride)(x)
        return nn.Dense(13)(x.mean(axis=(1, 2)))


IMAGES = jax.random.normal(jax.random.key(3), (4, 32, 32, 3))
MODELS = {
    "language": (LanguageModel(), jnp.arange(4 * 40).reshape(4, 40) % 211, 1 + 3 * 6 + 1),
    "vision": (VisionTransformer(), IMAGES, 1 + 3 * 6 + 1),
    "resnet": (ResNet(), IMAGES, 1 + 2 + 3 + 3 + 1),
}


def by_hand(model):
    """The model with x W + bias, and then (x A) B, in every layer that has an adapter."""

    def layer_by_hand(lora, next_fun, args, kwargs, context):
        layer = context.module
        path = "/".join(("params", *layer.path))
        adapters = [
            lora[f"{path}/{leaf}"] for leaf in ("kernel", "embedding") if f"{path}/{leaf}" in lora
        ]
        if context.method_name != "__call__" or not adapters:
            return next_fun(*args, **kwargs)
        [node], [x, *_] = adapters, args
        b = node.b * lax.stop_gradient(node.scaling)
        if isinstance(layer, nn.Embed):
            return next_fun(x) + node.a[x] @ b
        if isinstance(layer, nn.Conv):
            strides = layer.strides if isinstance(layer.strides, tuple) else (layer.strides,) * 2
            numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
            rows = lax.conv_general_dilated(
                x, node.a, [stride or 1 for stride in strides], layer.padding, **numbers
            )
        else:
            rows = jnp.tensordot(x, node.a, node.a.ndim - 1)
        return next_fun(x) + jnp.tensordot(rows, b, 1)

    def apply(frozen, lora, x):
        with nn.intercept_methods(functools.partial(layer_by_hand, lora)):
            return model.apply(frozen, x)

    return apply


@pytest.mark.parametrize("name", MODELS)
def test_a_step_costs_what_it_costs_by_hand(name):
    model, x, leaves = MODELS[name]
    variables = model.init(jax.random.key(0), x)
    axes = jlora.trace_axes(model.apply, variables, x)
    frozen, lora = adapted(variables, axes, targets="kernel|embedding", rank=4)
    assert len(lora) == leaves
    report = check_law_1(model.apply, frozen, lora, x, factored=leaves, tolerance=1e-4)
    assert not report.unused

    def merged(frozen, lora, x):
        return model.apply(jlora.merge(frozen, lora), x)

    lifted = jlora.lift(model.apply, strict=True)
    at_least = 0.995 if name == "resnet" else 0.97  # the others' rows have several dimensions
    check_costs(lifted, by_hand(model), merged, frozen, lora, x, at_least)


def mixture_of_experts(product, ragged, params, x):
    """Each token through the one expert that the router likes best."""
    scores = jax.nn.softmax(product(params["router"], x))
    expert = scores.argmax(axis=-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=scores.shape[-1]).astype(jnp.int32)
    hidden = jax.nn.gelu(ragged(params["up"], x[order], sizes))
    out = ragged(params["down"], hidden, sizes)[jnp.argsort(order)]
    return x + out * jnp.max(scores, axis=-1, keepdims=True)


def recurrent_network(product, ragged, params, x):
    """A tanh network over time, its products inside a scan."""

    def step(state, one):
        state = jnp.tanh(product(params["inward"], one) + product(params["onward"], state))
        return state, product(params["outward"], state)

    return lax.scan(step, jnp.zeros(56), x)[1]


def plain_product(w, x):
    return x @ w


def plain_ragged(w, x, sizes):
    return lax.ragged_dot(x, w, sizes)


def product_by_hand(weight, x):
    w, a, b, scaling = weight
    return x @ w + (scaling * (x @ a)) @ b


def ragged_by_hand(weight, x, sizes):
    w, a, b, scaling = weight
    rows = lax.ragged_dot(x, a, sizes)
    return lax.ragged_dot(x, w, sizes) + lax.ragged_dot(scaling * rows, b, sizes)


FUNCTIONS = {
    mixture_of_experts: {"router": (48, 5), "up": (5, 48, 104), "down": (5, 104, 48)},
    recurrent_network: {"inward": (48, 56), "onward": (56, 56), "outward": (56, 40)},
}


@pytest.mark.parametrize("network", FUNCTIONS, ids=lambda network: network.__name__)
def test_a_step_of_experts_or_of_a_recurrence_costs_what_it_costs_by_hand(network):
    keys = jax.random.split(jax.random.key(5), 4)
    shapes = FUNCTIONS[network].items()
    params = {n: jax.random.normal(k, s) / 7 for (n, s), k in zip(shapes, keys, strict=False)}
    x = jax.random.normal(keys[3], (160, 48))

    def base(params, x):
        return network(plain_product, plain_ragged, params, x)

    axes = jlora.trace_axes(base, params, x)
    frozen, lora = adapted(params, axes, rank=4)
    check_law_1(base, frozen, lora, x, factored=3, tolerance=1e-4)

    def hand(frozen, lora, x):
        weights = {
            name: (frozen[name], node.a, node.b, lax.stop_gradient(node.scaling))
            for name, node in lora.items()
        }
        return network(product_by_hand, ragged_by_hand, weights, x)

    def merged(frozen, lora, x):
        return base(jlora.merge(frozen, lora), x)

    check_costs(jlora.lift(base, strict=True), hand, merged, frozen, lora, x)
