"""Loading what stays small takes the file's size, one layer and little else, at its peak."""

import json
import shutil
import subprocess
import sys

import bitsandbytes_folders
import gguf
import gguf_files
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

WIDTH, WITHIN, HEADS = 1024, 4096, 16
LITTLE = 40 * 10**6  # bytes: what no size of a model changes
RNG = np.random.default_rng(0)
PARTS = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    **{f"mlp.{name}_proj": (WITHIN, WIDTH) for name in ("gate", "up")},
    "mlp.down_proj": (WIDTH, WITHIN),
}
OF_GGUF = {
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
# In /proc, not of getrusage: that counts what the process that started this one held.
PROGRAM = """
import sys, warnings
import jax.numpy as jnp
from jlora import models

def said(name):
    lines = open("/proc/self/status").read().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith(name + ":")]
    return int(kib) * 1024

warnings.simplefilter("ignore")
short, deep = sys.argv[1:]
models.load(short, dtype=jnp.bfloat16, quantize="stored")
before = said("VmRSS")
model = models.load(deep, dtype=jnp.bfloat16, quantize="stored")
print(said("VmHWM") - before)
"""


def settings(layers):
    return {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": WITHIN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": 37,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": 1,
    }


def plain_tensors(layers):
    norms = ("input_layernorm", "post_attention_layernorm")
    names = [f"model.layers.{layer}.{norm}" for layer in range(layers) for norm in norms]
    tensors = {f"{name}.weight": np.ones(WIDTH, "f4") for name in (*names, "model.norm")}
    return {**tensors, "model.embed_tokens.weight": RNG.normal(size=(37, WIDTH)).astype("f4")}


def gguf_file(path, layers):
    packed = {}
    for layer in range(layers):
        for part, (out, inputs) in PARTS.items():
            data = RNG.integers(0, 256, (out, inputs // 32, 20), "u1")
            data[..., :4] = np.array([0.01, -0.1], "<f2").view("u1")  # a scale, a minimum
            kind = gguf.GGMLQuantizationType.Q4_1
            packed[f"blk.{layer}.{OF_GGUF[part]}.weight"] = (data.reshape(out, -1), kind)
    file = path.with_suffix(".gguf")
    gguf_files.write(file, settings(layers), plain_tensors(layers), further=packed)
    return file, file.stat().st_size


def folder(path, layers, parts, method):
    path.mkdir()
    tensors = plain_tensors(layers)
    for layer in range(layers):
        for part, shape in PARTS.items():
            tensors |= parts(f"model.layers.{layer}.{part}.weight", *shape)
    save_file(tensors, path / "model.safetensors")
    said = {**settings(layers), "quantization_config": method}
    (path / "config.json").write_text(json.dumps(said))
    bitsandbytes_folders.save_words(path)
    return path, (path / "model.safetensors").stat().st_size


def fp8_parts(name, out, inputs):
    bits = RNG.integers(0, 0x7F, (out, inputs), "u1")
    return {
        name: bits.view(ml_dtypes.float8_e4m3fn),
        f"{name}_scale_inv": np.full((out // 128, inputs // 128), 0.01, "f4"),
    }


def four_bit_parts(name, out, inputs):
    return bitsandbytes_folders.parts(name, out, inputs)[0]


def int8_parts(name, out, inputs):
    return bitsandbytes_folders.int8_parts(name, out, inputs)[0]


WRITTEN = {
    "gguf": (gguf_file, 20),
    "nf4": (
        lambda path, layers: folder(
            path, layers, four_bit_parts, {"quant_method": "bitsandbytes", "load_in_4bit": True}
        ),
        24,
    ),
    "int8": (
        lambda path, layers: folder(
            path, layers, int8_parts, {"quant_method": "bitsandbytes", "load_in_8bit": True}
        ),
        12,
    ),
    "fp8": (lambda path, layers: folder(path, layers, fp8_parts, {"quant_method": "fp8"}), 12),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_peak_is_the_file_and_one_layer(kind, tmp_path):
    write, layers = WRITTEN[kind]
    short, _ = write(tmp_path / "short", 1)
    deep, size = write(tmp_path / "deep", layers)
    assert 190 * 10**6 < size < 260 * 10**6
    given = [sys.executable, "-c", PROGRAM, str(short), str(deep)]
    said = subprocess.run(given, capture_output=True, text=True, check=True)
    peak = int(said.stdout)
    shutil.rmtree(tmp_path)
    one_layer = 4 * sum(out * inputs for out, inputs in PARTS.values())  # in float32
    assert size * 0.9 < peak < size + one_layer + LITTLE
