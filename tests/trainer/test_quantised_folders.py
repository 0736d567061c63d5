"""Folders with fp8 and MXFP4 weights: read as what they stand for, written as that."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from jlora import models
from jlora.models import expected_shapes

RNG = np.random.default_rng(0)
PLAIN = pytest.mark.filterwarnings("ignore:.*weights are plain")
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def quantised(folder, block, change=lambda tensors: None):
    """The folder with its projections in fp8, and changed; the tensors that they stand for."""
    meant = {}
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in list(tensors.items()):
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = tensor.shape
        high, wide = block or tensor.shape
        scales = RNG.uniform(0.01, 0.1, (-(-rows // high), -(-columns // wide))).astype("f")
        each = scales[np.arange(rows) // high][:, np.arange(columns) // wide]
        tensors[name] = (tensor / each).astype(ml_dtypes.float8_e4m3fn)
        meant[name] = tensors[name].astype("f") * each
        tensors[f"{name}_scale_inv"] = scales if block else scales.reshape(())
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    edit(folder / "config.json", quantization_config={**FP8, "weight_block_size": block})
    return meant


@PLAIN
@pytest.mark.parametrize("block", [[5, 7], [128, 128], None])
def test_fp8_weights_are_read_as_numbers_times_the_scale_of_their_block(copy, block):
    meant = quantised(copy, block)
    model = models.load(copy)
    for path in ("attn/q_proj", "mlp/down_proj"):
        part, name = path.split("/")
        part = {"attn": "self_attn"}.get(part, part)
        found = np.asarray(model.params["layers"][path.split("/")[0]][name]["kernel"])
        for layer in range(2):
            want = meant[f"model.layers.{layer}.{part}.{name}.weight"]
            np.testing.assert_array_equal(found[layer], want.T)
            assert want.std() > 0
    small = models.load(copy, quantize="stored").params
    kernel = small["layers"]["mlp"]["down_proj"]["kernel"]
    assert (kernel.format, kernel.values.dtype) == ("fp8", np.uint8)
    jax.tree.map(np.testing.assert_array_equal, jlora.dequantize(small), model.params)


def in_powers(folder, held):
    """The folder with scales that are powers of two, in this form; what its weights stand for."""
    meant = {}

    def change(tensors):
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            weight = tensors[name.removesuffix("_scale_inv")]
            exponents = RNG.integers(120, 131, tensors[name].shape).astype(np.uint8)
            scales = np.float32(2) ** (exponents.astype(np.float32) - 127)
            tensors[name] = scales if held == "F32" else exponents
            rows, columns = weight.shape
            each = scales[np.arange(rows) // 5][:, np.arange(columns) // 7]
            meant[name.removesuffix("_scale_inv")] = weight.astype("f") * each

    quantised(folder, [5, 7], change)
    if held == "F8_E8M0":  # which numpy has no name for: the header is given it
        path = folder / "model.safetensors"
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        for name in entries:
            if name.endswith("_scale_inv"):
                entries[name]["dtype"] = held
        head = json.dumps(entries).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
    return meant


@PLAIN
@pytest.mark.parametrize("held", ["F32", "F8_E8M0", "U8"])
def test_scales_that_are_powers_of_two_are_read_in_each_form(copy, held):
    meant = in_powers(copy, held)
    settings = {**FP8, "weight_block_size": [5, 7], "scale_fmt": "ue8m0"}
    edit(copy / "config.json", quantization_config=settings)
    plain, small = (models.load(copy, quantize=each).params for each in (None, "stored"))
    for found in (plain, jlora.dequantize(small)):
        for layer in range(2):
            kernel = np.asarray(found["layers"]["mlp"]["up_proj"]["kernel"])[layer]
            want = meant[f"model.layers.{layer}.mlp.up_proj.weight"]
            np.testing.assert_array_equal(kernel, want.T)


def test_bytes_are_no_scales_where_nothing_says_so(copy):
    in_powers(copy, "U8")
    with pytest.raises(ValueError, match="_scale_inv is of dtype U8, expected F32"):
        models.load(copy)


def test_an_exported_folder_holds_what_they_stand_for_and_says_nothing_of_fp8(copy, tmp_path):
    meant = quantised(copy, [5, 7])
    out = models.export(copy, tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(tensors[name], meant[name].astype(ml_dtypes.bfloat16))
    assert tensors["model.norm.weight"].dtype == np.float32
    assert not any("scale" in name for name in tensors)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    wide = models.export(copy, tmp_path / "wide", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, models.load(wide).params, models.load(copy).params)


def test_fp8_without_scales_that_fit_is_an_error_that_names_them(copy):
    gate, up = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))

    def change(tensors):
        del tensors[f"{gate}_scale_inv"]
        tensors[f"{up}_scale_inv"] = np.ones((2, 2), np.uint8)
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(ml_dtypes.float8_e4m3fn)

    quantised(copy, [5, 7], change)
    with pytest.raises(ValueError, match="quantised weights can't be read") as caught:
        models.load(copy)
    assert f"{gate} has no scales, {gate}_scale_inv" in str(caught.value)
    assert f"{up}_scale_inv has shape (2, 2), expected (8, 4)" in str(caught.value)
    assert f"{up}_scale_inv is of dtype U8, expected F32 or F16 or BF16 or F8_E8M0" in str(
        caught.value
    )
    assert "model.norm.weight has shape (24,): expected blocks" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"quant_method": "gptq"},
            "has quant_method 'gptq', but only 'fp8', 'mxfp4', ",
        ),
        ({"activation_scheme": "static"}, "activation_scheme of quantization_config is 'static'"),
        ({"weight_block_size": [128]}, r"is [128]: expected two numbers above 0"),
    ],
)
def test_other_quantisations_are_refused(copy, changes, told):
    edit(copy / "config.json", quantization_config={**FP8, **changes})
    with pytest.raises(ValueError, match=r"config\.json: ") as caught:
        models.load(copy)
    assert told in str(caught.value)


def e2m1(bits):
    """A number by its four bits: the sign, two of the exponent (bias 1), one of the mantissa."""
    sign, exponent, mantissa = (-1) ** (bits >> 3), bits >> 1 & 3, bits & 1
    return sign * (mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2))


@PLAIN
def test_mxfp4_experts_are_read_as_the_numbers_of_their_blocks(tiny, tmp_path):
    settings = {
        "model_type": "gpt_oss",
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
        "num_key_value_heads": 1,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "eos_token_id": 1,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    }
    config = models.from_huggingface(settings, "config.json")
    leaves = models._families.FAMILIES["gpt_oss"].leaves
    tensors, meant = {}, {}
    for path, shape in expected_shapes(config).items():
        for layer in range(2 if path.startswith("layers/") else 1):
            value = RNG.normal(size=shape[1:] if path.startswith("layers/") else shape)
            tensors |= models.to_stored(leaves[path], layer, value.astype("f"))
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        codes = RNG.integers(0, 16, (experts, outputs, inputs))
        exponents = RNG.integers(120, 130, (experts, outputs, inputs // 32))
        pairs = codes.reshape(experts, outputs, inputs // 32, 16, 2)
        tensors[f"{name}_blocks"] = (pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8)
        tensors[f"{name}_scales"] = exponents.astype(np.uint8)
        numbers = np.vectorize(e2m1)(codes) * np.repeat(2.0 ** (exponents - 127), 32, axis=-1)
        meant[name] = numbers.swapaxes(1, 2)
    folder = tmp_path / "gpt-oss"
    folder.mkdir()
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    shutil.copy(tiny / "tokenizer.json", folder)
    model = models.load(folder)
    for name in ("gate_up_proj", "down_proj"):
        found = np.asarray(model.params["layers"]["mlp"]["experts"][name]["kernel"])
        for layer in range(2):
            want = meant[f"model.layers.{layer}.mlp.experts.{name}"]
            np.testing.assert_array_equal(found[layer], want)
    small = models.load(folder, quantize="stored").params
    jax.tree.map(np.testing.assert_array_equal, jlora.dequantize(small), model.params)
    kernel = small["layers"]["mlp"]["experts"]["down_proj"]["kernel"]
    assert (kernel.format, kernel.data.shape) == ("MXFP4", (2, 3, 64, 17))
    out = models.export(folder, tmp_path / "out")
    again = models.load(out)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert again.stored["layers/mlp/experts/down_proj/kernel"].kind == "experts_as_ours"
    narrow = models.load(folder, dtype=jnp.bfloat16).params["layers"]["mlp"]["experts"]
    np.testing.assert_array_equal(  # bfloat16 holds each of them
        narrow["down_proj"]["kernel"].astype(jnp.float32),
        model.params["layers"]["mlp"]["experts"]["down_proj"]["kernel"],
    )
