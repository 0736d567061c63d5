"""nf4, fp4 and int8 as bitsandbytes encodes and decodes them."""

import json

import bitsandbytes
import bitsandbytes.functional as bnb
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from random_models import TOKENS, assert_near, logits_of, randomised, save_tokenizer
from variants import EAGER, GPT2, SMALL

import jlora
from jlora import models
from jlora._quantised import FourBitWeight, encoded
from jlora._quantised._four_bits import TABLES, levels, of_neighbours

RNG = np.random.default_rng(0)
AXES = jlora.Axes((0,), (1,))  # our kernel is (in, out), theirs (out, in)


def theirs(shape, kind="nf4", *, nested=True, block=64):
    """A weight (out, in), its bytes, its state and what they stand for, by bitsandbytes."""
    weight = torch.tensor((RNG.normal(size=shape) * RNG.lognormal(size=(shape[0], 1))).astype("f"))
    given = {"quant_type": kind, "compress_statistics": nested, "blocksize": block}
    data, state = bnb.quantize_4bit(weight, **given)
    return weight.numpy(), data.numpy(), state, bnb.dequantize_4bit(data, state).numpy()


def leaf_of(data, state, shape):
    """Their bytes as a leaf of ours."""
    out, inputs = shape
    flat, block = bool(inputs % state.blocksize), state.blocksize
    rows = (-1,) if flat else (out, -1)
    codes = of_neighbours(np.pad(data.reshape(-1), (0, -data.size % (block // 2))), block)
    scales = state.absmax.numpy()
    more = (state.state2.absmax.numpy(), state.offset.numpy()) if state.nested else (None, None)
    arrays = jax.tree.map(jnp.asarray, (codes.reshape(rows), scales.reshape(rows), *more))
    dtype, kind = jnp.dtype("float32"), state.quant_type
    return FourBitWeight(*arrays, (inputs, out), dtype, AXES, kind, block, flat)


def test_tables_are_those_of_bitsandbytes():
    for kind, table in TABLES.items():
        np.testing.assert_array_equal(table, bnb.get_4bit_type(kind, device="cpu").numpy())
    np.testing.assert_array_equal(levels(), bnb.create_dynamic_map().numpy())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("shape", "block"), [((70, 192), 64), ((70, 40), 64), ((37, 384), 128)])
def test_their_bytes_decode_to_what_they_say(kind, nested, shape, block):
    _, data, state, want = theirs(shape, kind, nested=nested, block=block)
    got = np.asarray(jax.jit(lambda leaf: leaf.plain())(leaf_of(data, state, shape))).T
    if not nested:
        np.testing.assert_array_equal(got, want)
    blocks = np.pad(want.reshape(-1), (0, -want.size % block)).reshape(-1, block)
    scale = np.abs(blocks).max(-1, keepdims=True)
    far = np.pad(np.abs(got - want).reshape(-1), (0, -want.size % block)).reshape(-1, block)
    assert (far <= 1e-6 * scale).all()
    assert want.std() > 0.1


def test_our_bytes_are_theirs():
    weight, data, state, _ = theirs((300, 192))  # several groups of scales
    assert state.state2.absmax.shape == (4,)
    ours = encoded(jnp.asarray(weight.T), AXES, "nf4")
    same = np.asarray(ours.codes).reshape(-1) == of_neighbours(data.reshape(-1), 64)
    assert same.mean() > 0.9999  # a number in the middle of two
    apart = np.asarray(ours.scales).reshape(-1).astype(int) - state.absmax.numpy().astype(int)
    assert (apart == 0).mean() > 0.99  # the others are in the middle of two levels, to rounding
    assert np.abs(apart).max() <= 1
    np.testing.assert_allclose(ours.scale_scales, state.state2.absmax.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours.offset, state.offset.numpy(), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weights are plain")
@pytest.mark.parametrize(
    ("family", "settings", "kind", "nested", "storage"),
    [
        ("llama", {**SMALL, "hidden_size": 64, "num_attention_heads": 4}, "nf4", True, "uint8"),
        ("llama", SMALL, "fp4", False, "bfloat16"),
        ("gpt2", {**GPT2, "n_embd": 64, "n_head": 4}, "nf4", True, "uint8"),
    ],
)
def test_a_folder_that_transformers_wrote_gives_its_logits(
    family, settings, kind, nested, storage, tmp_path
):
    config = transformers.AutoConfig.for_model(family, **settings)
    randomised(config).save_pretrained(tmp_path / "whole")
    given = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_quant_storage=storage,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=given, dtype=torch.float32, **EAGER
    )
    theirs.save_pretrained(tmp_path / "small")
    theirs = theirs.dequantize(torch.float32)  # some shapes have no product of its own on a CPU
    save_tokenizer(tmp_path / "small")
    for quantize in (None, "stored"):
        model = models.load(tmp_path / "small", quantize=quantize)
        ours = jax.jit(model.apply)(model.params, TOKENS)
        assert_near(ours, logits_of(theirs), 1e-4)
    kernel = model.params["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.format == kind
    assert kernel.nbytes < np.prod(kernel.shape) * 0.6


# ---- int8 ----------------------------------------------------------------------------------------


def theirs_of_int8(out, inputs):
    """A layer of 8 bits on a CPU, its weight's numbers made of random ones."""
    layer = bitsandbytes.nn.Linear8bitLt(inputs, out, bias=False, has_fp16_weights=False)
    weight = RNG.normal(size=(out, inputs)) * RNG.lognormal(size=(out, 1))
    layer.weight = bitsandbytes.nn.Int8Params(torch.tensor(weight.astype("f2")), False)
    return layer.to("cpu")


def written(layer, folder):
    """A folder of a model whose layers' down projections are this one, and the model."""
    folder.mkdir()
    inputs, out = layer.in_features, layer.out_features
    settings = {**SMALL, "hidden_size": out, "intermediate_size": inputs}
    model = randomised(transformers.AutoConfig.for_model("llama", **settings))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name in [name for name in tensors if name.endswith("down_proj.weight")]:
        del tensors[name]
        of_layer = layer.state_dict(prefix=name.removesuffix("weight"))
        tensors |= {part: tensor.clone() for part, tensor in of_layer.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    said = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    settings = {"model_type": "llama", **settings, "quantization_config": said}
    (folder / "config.json").write_text(json.dumps(settings))
    save_tokenizer(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*weights are plain")
def test_their_whole_numbers_decode_to_the_bits_that_they_train_with(tmp_path):
    """Their other way, ``(q SCB) / 127``, rounds the product before the share is taken."""
    layer = theirs_of_int8(24, 37)
    data, largest = layer.weight.data, layer.weight.SCB
    state = bitsandbytes.MatmulLtState()
    state.CB, state.SCB, state.has_fp16_weights = data, largest, False
    want = bitsandbytes.matmul(torch.eye(37), data, state=state).T.numpy()
    others = bnb.int8_vectorwise_dequant(data, largest).numpy()
    folder = written(layer, tmp_path / "model")
    plain, small = (models.load(folder, quantize=each).params for each in (None, "stored"))
    assert small["layers"]["mlp"]["down_proj"]["kernel"].format == "int8"
    for params in (plain, jlora.dequantize(small)):
        ours = np.asarray(params["layers"]["mlp"]["down_proj"]["kernel"])[0].T
        np.testing.assert_array_equal(ours, want)
        np.testing.assert_allclose(ours, others, rtol=2**-22, atol=0)
    assert want.std() > 0.1


@pytest.mark.filterwarnings("ignore:.*weights are plain")
@pytest.mark.parametrize(
    ("family", "settings", "skip"),
    [("llama", SMALL, None), ("llama", SMALL, ["up_proj", "lm_head"]), ("gpt2", GPT2, None)],
)
def test_a_folder_of_int8_that_transformers_wrote_gives_its_logits(
    family, settings, skip, tmp_path
):
    config = transformers.AutoConfig.for_model(family, **settings)
    randomised(config).save_pretrained(tmp_path / "whole")
    given = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=given, dtype=torch.float32, **EAGER
    )
    theirs.save_pretrained(tmp_path / "small")
    save_tokenizer(tmp_path / "small")
    theirs = theirs.dequantize(torch.float32)  # theirs rounds activations to 8 bits, ours does not
    for quantize in (None, "stored"):
        model = models.load(tmp_path / "small", quantize=quantize)
        assert_near(jax.jit(model.apply)(model.params, TOKENS), logits_of(theirs), 1e-4)
    mlp = model.params["layers"]["mlp"]
    assert mlp["down_proj"]["kernel"].format == "int8"
    assert isinstance(mlp["up_proj"]["kernel"], jax.Array) == (skip is not None)
