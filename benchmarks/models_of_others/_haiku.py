"""Haiku's own image models."""

from __future__ import annotations

import jax


def _made(name: str, **settings) -> tuple:
    import haiku as hk

    def network(images, training):
        return getattr(hk.nets, name)(num_classes=11, **settings)(images, is_training=training)

    model = hk.without_apply_rng(hk.transform_with_state(network))
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    params, state = model.init(jax.random.key(0), images, True)
    return lambda params, images: model.apply(params, state, images, False)[0], params, images


def resnet50() -> tuple:
    """ResNet-50."""
    return _made("ResNet50")


def mobilenet() -> tuple:
    """MobileNet v1."""
    return _made("MobileNetV1")


MODELS = {"ResNet-50": resnet50, "MobileNet v1": mobilenet}
