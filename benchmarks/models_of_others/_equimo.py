"""Image models of equimo, in Equinox."""

from __future__ import annotations

import importlib

import equinox as eqx
import jax


def _made(module: str, name: str, *sizes: int, width: int = 32, **settings) -> tuple:
    models = importlib.import_module(f"equimo.vision.models.{module}")
    model = getattr(models, name)(*sizes, **settings, num_classes=11, key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    images = jax.random.normal(jax.random.key(1), (2, 3, width, width))

    def apply(arrays, images):
        model = eqx.combine(arrays, static)
        key = jax.random.key(2)  # not used: nothing is dropped in inference
        return jax.vmap(lambda image: model(image, key=key, inference=True))(images)

    return apply, arrays, images


def vit() -> tuple:
    """A vision transformer."""
    settings = {"dim": 24, "patch_size": 8, "num_heads": 3, "depths": [2]}
    return _made("vit", "VisionTransformer", 32, 3, **settings)


def convnext() -> tuple:
    """ConvNeXt."""
    return _made("convnext", "ConvNeXt", 3, depths=[1, 1, 1, 1], dims=[8, 12, 16, 24])


def attnet() -> tuple:
    """AttNet."""
    kernels = {"kernel_sizes": [3, 3, 3, 3], "width": 96}  # 3 x 3 pixels are left at the end
    return _made("attnet", "AttNet", 3, depths=[1, 1, 1, 1], dims=[8, 12, 16, 24], **kernels)


def vssd() -> tuple:
    """VSSD: state spaces, then attention."""
    return _made("vssd", "Vssd", 32, 3, depths=[1, 1, 1, 1])


def parcae() -> tuple:
    """Parcae: a transformer whose middle blocks run in a loop, with one set of weights."""
    loop = {"mean_recurrence": 3, "max_recurrence": 3, "state_init": "zero"}
    return _made("parcae", "VisionParcae", 32, 3, 24, 8, 3, **loop)


MODELS = {"ViT": vit, "ConvNeXt": convnext, "AttNet": attnet, "VSSD": vssd, "Parcae": parcae}
