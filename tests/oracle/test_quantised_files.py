"""fp8 and MXFP4 weights as transformers and gguf dequantise them."""

import gguf
import numpy as np
import pytest
import torch
from transformers.integrations import finegrained_fp8, mxfp4

from jlora.models._files import _quantised_tensors

RNG = np.random.default_rng(0)


def test_mxfp4_is_dequantised_as_by_transformers():
    blocks = RNG.integers(0, 256, (3, 10, 4, 16), dtype=np.uint8)
    exponents = RNG.integers(1, 250, (3, 10, 4), dtype=np.uint8)
    theirs = mxfp4.convert_moe_packed_tensors(
        torch.tensor(blocks), torch.tensor(exponents), dtype=torch.float32
    )
    ours = _quantised_tensors.of_mxfp4(blocks, exponents)
    assert ours.shape == (3, 128, 10)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_mxfp4_is_dequantised_as_by_gguf():
    blocks = RNG.integers(0, 256, (7, 2, 16), dtype=np.uint8)
    exponents = RNG.integers(0, 255, (7, 2), dtype=np.uint8)
    # gguf has a block's first half in the low bits, its second half in the high ones
    numbers = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(7, 2, 32)
    packed = numbers[..., :16] | numbers[..., 16:] << 4
    rows = np.concatenate([exponents[..., None], packed], axis=-1).reshape(7, -1)
    theirs = gguf.dequantize(rows, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(_quantised_tensors.of_mxfp4(blocks, exponents), theirs.T)


def test_an_exponent_that_is_no_number_makes_its_block_none():
    blocks = np.full((1, 2, 16), 0x21, np.uint8)
    found = _quantised_tensors.of_mxfp4(blocks, np.array([[255, 127]], np.uint8))
    assert np.isnan(found[:32]).all()
    assert found[32:, 0].tolist() == [0.5, 1.0] * 16


@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8)])
def test_fp8_is_dequantised_as_by_transformers(shape):
    weight = torch.tensor(RNG.normal(size=shape).astype("f")).to(torch.float8_e4m3fn)
    scales = torch.tensor(RNG.uniform(0.1, 3, (*shape[:-2], 2, 2)).astype("f"))
    theirs = finegrained_fp8.Fp8Dequantize(None)._dequantize_one(weight, scales)
    bits = weight.view(torch.uint8).numpy()
    ours = _quantised_tensors._of_fp8((3, 4))(bits, scales.numpy())
    np.testing.assert_array_equal(ours, theirs.numpy())
