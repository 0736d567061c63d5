"""fp8 and MXFP4 weights as transformers and gguf dequantise them."""

import json

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers
from random_models import TOKENS, assert_near, logits_of, randomised, save_tokenizer
from safetensors.torch import save_file
from transformers.integrations import finegrained_fp8, mxfp4
from variants import EAGER, GPT_OSS, SMALL

from jlora import models
from jlora.models._files import _fp8_tensors, _mxfp4_tensors

RNG = np.random.default_rng(0)


def test_mxfp4_is_dequantised_as_by_transformers():
    blocks = RNG.integers(0, 256, (3, 10, 4, 16), dtype=np.uint8)
    exponents = RNG.integers(1, 250, (3, 10, 4), dtype=np.uint8)
    theirs = mxfp4.convert_moe_packed_tensors(
        torch.tensor(blocks), torch.tensor(exponents), dtype=torch.float32
    )
    ours = _mxfp4_tensors.of_mxfp4(blocks, exponents)
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
    np.testing.assert_array_equal(_mxfp4_tensors.of_mxfp4(blocks, exponents), theirs.T)


def test_an_exponent_that_is_no_number_makes_its_block_none():
    blocks = np.full((1, 2, 16), 0x21, np.uint8)
    found = _mxfp4_tensors.of_mxfp4(blocks, np.array([[255, 127]], np.uint8))
    assert np.isnan(found[:32]).all()
    assert found[32:, 0].tolist() == [0.5, 1.0] * 16


@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8)])
def test_fp8_is_dequantised_as_by_transformers(shape):
    weight = torch.tensor(RNG.normal(size=shape).astype("f")).to(torch.float8_e4m3fn)
    scales = torch.tensor(RNG.uniform(0.1, 3, (*shape[:-2], 2, 2)).astype("f"))
    theirs = finegrained_fp8.Fp8Dequantize(None)._dequantize_one(weight, scales)
    bits = weight.view(torch.uint8).numpy()
    ours = _fp8_tensors.of_fp8(bits, scales.numpy(), (3, 4))
    np.testing.assert_array_equal(ours, theirs.numpy())


def saved(folder, oracle, tensors, **settings):
    """The oracle's folder with these tensors and settings; the model in it."""
    oracle.save_pretrained(folder)
    save_tokenizer(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return models.load(folder)


def assert_the_logits_of_transformers(model, folder, **options):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **EAGER, **options
    )
    assert_near(jax.jit(model.apply)(model.params, TOKENS), logits_of(theirs), 1e-4)


def test_a_folder_of_fp8_gives_the_logits_of_transformers(tmp_path):
    config = transformers.AutoConfig.for_model("qwen3", **SMALL)
    oracle = randomised(config)
    tensors = {name: value.contiguous() for name, value in oracle.state_dict().items()}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        scales = torch.tensor(RNG.uniform(0.02, 0.1, (rows // 2, columns // 2)).astype("f"))
        each = scales.repeat_interleave(2, 0).repeat_interleave(2, 1)
        tensors[name] = (tensors[name] / each).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
    method = {"quant_method": "fp8", "weight_block_size": [2, 2], "activation_scheme": "dynamic"}
    model = saved(tmp_path, oracle, tensors, quantization_config=method)
    given = transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=(2, 2))
    assert_the_logits_of_transformers(model, tmp_path, quantization_config=given)


def test_a_folder_of_mxfp4_gives_the_logits_of_transformers(tmp_path):
    settings = {**SMALL, **GPT_OSS, "hidden_size": 64, "intermediate_size": 32}
    oracle = randomised(transformers.AutoConfig.for_model("gpt_oss", **settings))
    tensors = {name: value.contiguous() for name, value in oracle.state_dict().items()}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = RNG.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
        exponents = RNG.integers(122, 126, blocks.shape[:-1], dtype=np.uint8)
        tensors[f"{name}_blocks"] = torch.tensor(blocks)
        tensors[f"{name}_scales"] = torch.tensor(exponents)
    model = saved(tmp_path, oracle, tensors, quantization_config={"quant_method": "mxfp4"})
    given = transformers.Mxfp4Config(dequantize=True)
    assert_the_logits_of_transformers(model, tmp_path, quantization_config=given)
