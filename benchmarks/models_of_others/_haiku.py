"""Haiku's own image models."""

from __future__ import annotations

import jax


def _made(name: str, **settings) -> tuple:
    import haiku as hk

    def network(images, training):
        return getattr(hk.nets, name)(num_classes=11, **settings)(images, is_training=training)

    model = hk.without_apply_rng(hk.transform_with_state(network))
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    params, state = jax.jit(model.init, static_argnums=2)(jax.random.key(0), images, True)
    return lambda params, images: model.apply(params, state, images, False)[0], params, images


def resnet() -> tuple:
    """A residual network with bottlenecks, one block a group."""
    shape = {"blocks_per_group": (1, 1, 1, 1), "channels_per_group": (16, 24, 32, 40)}
    return _made("ResNet", **shape)


def mobilenet() -> tuple:
    """MobileNet v1."""
    shape = {"strides": (1, 2, 1), "channels": (16, 24, 32)}
    return _made("MobileNetV1", **shape)


MODELS = {"ResNet": resnet, "MobileNet v1": mobilenet}
