"""Folders of four and eight bits as bitsandbytes writes them, by numpy alone."""

import json

import jax
import numpy as np
import tokenizers
from family_settings import SETTINGS, config_of
from safetensors.numpy import load_file, save_file

import jlora
from jlora import models
from jlora._quantised._four_bits import TABLES, levels

DRAW = np.random.default_rng(0)
STATE = "quant_state.bitsandbytes__"


def quantise(folder, kind="nf4", *, nested=True, storage=np.uint8, turned=False, block=64):
    """The folder with its layers' matrices in four bits; what they stand for, as (out, in).

    ``turned``: in the file they were (in, out).
    """
    path, meant = folder / "model.safetensors", {}
    tensors = load_file(path)
    for name in [name for name in tensors if is_linear(name)]:
        out, inputs = tensors[name].shape[:: -1 if turned else 1]
        made, meant[name] = parts(name, out, inputs, kind, nested=nested, block=block)
        tensors |= {**made, name: made[name].view(storage)[:, None]}
    save_file(tensors, path)
    say(
        folder,
        quant_method="bitsandbytes",
        load_in_4bit=True,
        load_in_8bit=False,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype="bfloat16",
    )
    return meant


def quantise_to_int8(folder, *, turned=False, skip=()):
    """The folder with its layers' matrices in eight bits; what they stand for, as (out, in).

    Args:
        folder: a plain one.
        turned: whether in the file they were (in, out).
        skip: parts of names of those that stay as they are.
    """
    path, meant = folder / "model.safetensors", {}
    tensors = load_file(path)
    for name in [name for name in tensors if is_linear(name)]:
        if any(each in name for each in skip):
            continue
        out, inputs = tensors[name].shape[:: -1 if turned else 1]
        made, meant[name] = int8_parts(name, out, inputs)
        tensors |= made
    save_file(tensors, path)
    said = {"load_in_8bit": True, "load_in_4bit": False, "llm_int8_skip_modules": [*skip]}
    say(folder, quant_method="bitsandbytes", bnb_4bit_quant_type="fp4", **said)
    return meant


def int8_parts(name, out, inputs):
    """The tensors of one random weight, and what it stands for."""
    stem = name.removesuffix(".weight")
    values = DRAW.integers(-127, 128, (out, inputs)).astype(np.int8)
    largest = DRAW.uniform(0.1, 0.9, out).astype("f")
    order = np.zeros((), np.uint8)
    tensors = {name: values, f"{stem}.SCB": largest, f"{stem}.weight_format": order}
    return tensors, values * (largest * np.float32(1 / 127))[:, None]


def say(folder, **settings):
    """The folder with these settings of its quantisation."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))


def assert_read(folder, meant, rtol=1e-6):
    """The folder is read as what it stands for; kept as it is stored, it stands for the same."""
    plain = models.load(folder)
    stored, kernels = plain.stored, flat(plain.params)
    small = models.load(folder, quantize="stored")
    decoded = flat(jlora.dequantize(small.params))
    seen = 0
    for path, kernel in kernels.items():
        for layer in range(kernel.shape[0] if path.startswith("layers/") else 1):
            weight = kernel[layer] if path.startswith("layers/") else kernel
            for name, tensor in models.to_stored(stored[path], layer, weight).items():
                if name in meant:
                    turned = stored[path].kind == "conv1d"
                    want = meant[name].T if turned else meant[name]
                    np.testing.assert_array_equal(tensor, want)
                    seen += 1
        np.testing.assert_allclose(decoded[path], kernel, rtol=rtol, atol=rtol / 10)
    assert seen == len(meant) > 3
    return plain, small


def parts(name, out, inputs, kind="nf4", *, nested=True, block=64):
    """The tensors of one random weight, and what it stands for."""
    count = -(-out * inputs // block)
    packed = DRAW.integers(0, 256, -(-out * inputs // 2), dtype=np.uint8)
    codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: out * inputs]
    scales = DRAW.uniform(0.1, 0.4, count).astype("f")
    said = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [out, inputs]}
    tensors = {name: packed, f"{name}.absmax": scales, f"{name}.quant_map": TABLES[kind]}
    if nested:
        level = DRAW.integers(0, 256, count).astype(np.uint8)
        most = DRAW.uniform(0.01, 0.05, -(-count // 256)).astype("f")
        offset = np.float32(DRAW.uniform(0.1, 0.2))
        scales = levels()[level] * most[np.arange(count) // 256] + offset
        said |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
        tensors |= {f"{name}.nested_absmax": most, f"{name}.nested_quant_map": levels()}
        tensors[f"{name}.absmax"] = level
    tensors[f"{name}.{STATE}{kind}"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    numbers = TABLES[kind][codes] * np.repeat(scales, block)[: out * inputs]
    return tensors, numbers.reshape(out, inputs)


def save_words(folder):
    """A tokenizer of two words."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
    words.save(str(folder / "tokenizer.json"))


def of_family(folder, family, **changes):
    """A random model of the family."""
    folder.mkdir()
    config, tensors = config_of(family, **changes), {}
    stored = models.Model(models.expected_shapes(config), config, tokenizer=None, name="toy").stored
    for path, shape in models.expected_shapes(config).items():
        for layer in range(shape[0] if path.startswith("layers/") else 1):
            value = DRAW.normal(0, 0.3, shape[1:] if path.startswith("layers/") else shape)
            tensors |= models.to_stored(stored[path], layer, value.astype("f"))
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    settings = {"model_type": family, **SETTINGS[family], **changes}
    (folder / "config.json").write_text(json.dumps({**settings, "eos_token_id": 0}))
    save_words(folder)
    return folder


def is_linear(name):
    """Whether bitsandbytes would have it in four bits."""
    aside = ("norm", "ln_", "wte", "wpe", "embed", "lm_head", "mlp.gate.weight", "router")
    return name.endswith(".weight") and not any(each in name for each in aside)


def read(folder):
    """The tensors of the folder."""
    return load_file(folder / "model.safetensors")


def change(folder, of):
    """The folder with its tensors changed in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    of(tensors)
    save_file(tensors, path)


def flat(tree):
    """The leaves by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
