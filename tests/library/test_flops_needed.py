"""What ``python -m benchmarks.speed`` divides by: the FLOPs that a train step needs."""

import dataclasses

import jax
import pytest

from benchmarks._shared.llamas import LLAMAS
from benchmarks.speed._step import job, needed
from jlora.trainer._flops import flops

SMALL = dataclasses.replace(
    LLAMAS["135M"], vocabulary=211, width=48, layers=3, heads=3, kv_heads=1, head_dim=16,
    mlp_width=104,
)  # fmt: skip
OPTIONS = {"rows": 2, "length": 17, "rank": 4}


@pytest.mark.parametrize("remat", ["none", "products", "full"])
def test_training_everything_needs_three_forward_passes(remat):
    its = job(SMALL, "float32", "full", remat=remat, **OPTIONS)
    tokens = jax.ShapeDtypeStruct((2, 17), "int32")
    forward = flops(jax.make_jaxpr(its.model.apply)(its.model.params, tokens).jaxpr)
    assert needed(its) == 3 * forward


def test_lora_needs_no_gradient_of_a_frozen_weight():
    lora, full = (
        needed(job(SMALL, "float32", trains, remat="products", **OPTIONS))
        for trains in ("LoRA", "full")
    )
    token = 2 * 2 * 17  # FLOPs of one parameter in a product
    layers, rank, width, keys, inner, vocabulary = 3, 4, 48, 16, 104, 211
    weights = [(width, width), (width, keys), (width, keys), (width, width)]
    weights += [(width, inner), (width, inner), (inner, width)]
    of_weights = token * (layers * sum(i * o for i, o in weights) + width * vocabulary)
    thin = token * layers * sum(rank * (i + o) for i, o in weights)
    assert lora == full - of_weights + 3 * thin
