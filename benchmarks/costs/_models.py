"""The models, each with its ways to write a train step and what a step reads."""

from collections.abc import Callable
from typing import Any

import jax

from benchmarks._shared.llamas import LLAMAS
from benchmarks.costs._equinox import equinox_ways
from benchmarks.costs._linen import Transformer, linen_ways
from benchmarks.costs._nnx import nnx_ways
from benchmarks.costs._ways import Way
from jlora.models import Decoder

TOKENS = jax.ShapeDtypeStruct((4, 128), "int32")
IMAGES = jax.ShapeDtypeStruct((4, 160, 160, 3), "float32")
HIDDEN = jax.ShapeDtypeStruct((4, 128, 256), "float32")
ROWS = jax.ShapeDtypeStruct((512, 256), "float32")
# name: (the ways, what a step reads)
MODELS: dict[str, tuple[Callable[[], dict[str, Way]], Any]] = {
    "linen transformer, 8 layers": (lambda: linen_ways(Transformer(8, False), TOKENS), TOKENS),
    "the same, scanned": (lambda: linen_ways(Transformer(8, True), TOKENS), TOKENS),
    "linen ViT, 4 layers": (lambda: linen_ways(Transformer(4, False), IMAGES), IMAGES),
    "NNX attention, 2 layers": (lambda: nnx_ways(HIDDEN), HIDDEN),
    "Equinox MLP, 5 layers": (lambda: equinox_ways(ROWS), ROWS),
    "SmolLM2, 30 layers scanned": (lambda: linen_ways(Decoder(LLAMAS["135M"]), TOKENS), TOKENS),
}
