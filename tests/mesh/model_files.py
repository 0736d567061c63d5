"""Small models in files whose dimensions meshes divide: one for each way in which weights lie."""

import json

import bitsandbytes_folders
import gguf
import gguf_files
import ml_dtypes
import numpy as np
import tokenizers
from folders import in_shards
from safetensors.numpy import load_file, save_file

from jlora import _paths, models
from jlora.models._files._torch_tensors import oriented, to_stored

BFLOAT16, FP8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
SIZES = {
    "vocab_size": 72,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "eos_token_id": 0,
}
EXPERTS = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}
SETTINGS = {
    "llama": SIZES,
    "qwen2": SIZES,
    "gpt2": {
        "vocab_size": 72,
        "n_embd": 96,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 64,
        "eos_token_id": 0,
    },
    "mixtral": EXPERTS,
    "gpt_oss": {**EXPERTS, "hidden_size": 128, "sliding_window": 5},
    "qwen3_next": {
        **SIZES,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 16,
        "full_attention_interval": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "deepseek_v3": {
        **SIZES,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_shared_experts": 2,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
    },
    "gemma3n_text": {
        **SIZES,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "sliding_window": 5,
        "activation_sparsity_pattern": [0.8, 0.0, 0.6, 0.0, 0.7, 0.0],
        "altup_num_inputs": 4,
        "laurel_rank": 8,
        "vocab_size_per_layer_input": 40,
        "hidden_size_per_layer_input": 8,
    },
}


def config_of(family, **changes):
    settings = {"model_type": family, **SETTINGS[family], **changes}
    return models.from_huggingface(settings, "config.json"), settings


def layers_of(config, seed=0):
    """Every layer of every leaf, drawn at random: how it is stored, its number, its values."""
    rng, shapes = np.random.default_rng(seed), models.expected_shapes(config)
    table = models.Model(shapes, config, tokenizer=None, name="small").stored
    for path, shape in shapes.items():
        stack = path.startswith("layers/")
        for layer in _paths.numbers(path, shape[0]) if stack else (0,):
            drawn = rng.normal(0, 0.3, shape[1:] if stack else shape).astype(np.float32)
            yield table[path], layer, np.abs(drawn) if path.endswith("A_log") else drawn


def folder(path, family, *, shards=False, **changes):
    """A Hugging Face folder, most of it in bfloat16."""
    path.mkdir()
    config, settings = config_of(family, **changes)
    tensors = {}
    for stored, layer, value in layers_of(config):
        held = np.float32 if stored.kind in ("plain", "buffer") else BFLOAT16
        for name, tensor in to_stored(stored, layer, value).items():
            tensors[name] = np.ascontiguousarray(tensor, held)
    save_file(tensors, path / "model.safetensors")
    if shards:
        in_shards(path)
    (path / "config.json").write_text(json.dumps(settings))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
    words.save(str(path / "tokenizer.json"))
    return path


def fp8(path):
    """A folder whose projections are float8 with a scale for each block of 16 x 8."""
    folder(path, "llama")
    rng, tensors = np.random.default_rng(1), load_file(path / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].astype("f").astype(FP8)
        scales = rng.uniform(0.1, 1, (rows // 16, columns // 8)).astype("f")
        tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, path / "model.safetensors")
    _quantised(path, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[16, 8])
    return path


def mxfp4(path):
    """A folder whose experts are numbers of four bits."""
    folder(path, "gpt_oss")
    rng, tensors = np.random.default_rng(2), load_file(path / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = rng.integers(0, 256, (*blocks, 16)).astype(np.uint8)
        tensors[f"{name}_scales"] = rng.integers(120, 130, blocks).astype(np.uint8)
    save_file(tensors, path / "model.safetensors")
    _quantised(path, quant_method="mxfp4")
    return path


def nf4(path):
    """A folder whose projections are numbers of four bits, with scales of scales."""
    bitsandbytes_folders.quantise(folder(path, "llama"), block=32)
    return path


def int8(path, **changes):
    """A folder whose projections are whole numbers."""
    bitsandbytes_folders.quantise_to_int8(folder(path, "llama", **changes))
    return path


def _quantised(path, **settings):
    file = path / "config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "quantization_config": settings}))


def gguf_file(path, family, kind=None, **changes):
    """A GGUF file; with a kind its matrices are of that, where their rows are whole blocks.

    Of two kinds the layers have one in turns.
    """
    config, settings = config_of(family, **changes)
    tensors = {
        stored.name.format(layer): np.ascontiguousarray(oriented(stored, value))
        for stored, layer, value in layers_of(config)
    }
    settings = {"altup_active_idx": 0, **settings, **models.to_huggingface(config)}
    gguf_files.write(path, settings, tensors, pre="qwen2")
    if kind is not None:
        _packed(path, *(kind if isinstance(kind, tuple) else (kind,)))
    return path


def _packed(path, *kinds):
    """The file anew, with its matrices of these kinds, layer by layer in turns."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path.with_suffix(".new"), architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        item = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        layer = tensor.name.split(".")[1]
        kind = kinds[int(layer) % len(kinds) if layer.isdigit() else 0]
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        if tensor.data.ndim > 1 and tensor.data.shape[-1] % block == 0:
            writer.add_tensor(tensor.name, gguf.quantize(tensor.data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").rename(path)


STREAMS = {"laurel_rank": 64, "vocab_size_per_layer_input": 72}  # no header says these
KINDS = gguf.GGMLQuantizationType
LARGE = {"vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1536, "head_dim": 128}
WRITTEN = {
    "large": lambda at: folder(at, "llama", **LARGE),
    "large of int8": lambda at: int8(at, **LARGE),
    "large gguf of blocks": lambda at: gguf_file(at, "qwen2", KINDS.Q8_0, **LARGE),
    "linear": lambda at: folder(at, "llama"),
    "several shards": lambda at: folder(at, "llama", shards=True),
    "conv1d": lambda at: folder(at, "gpt2"),
    "experts": lambda at: folder(at, "mixtral"),
    "experts as ours": lambda at: folder(at, "gpt_oss"),
    "experts one by one": lambda at: folder(at, "qwen3_next"),
    "buffers": lambda at: folder(at, "deepseek_v3"),
    "streams": lambda at: folder(at, "gemma3n_text"),
    "fp8": fp8,
    "mxfp4": mxfp4,
    "nf4": nf4,
    "int8": int8,
    "gguf": lambda at: gguf_file(at, "llama"),
    "gguf of blocks": lambda at: gguf_file(at, "llama", KINDS.Q8_0),
    "gguf of two kinds": lambda at: gguf_file(at, "llama", (KINDS.Q8_0, KINDS.Q4_1)),
    "gguf of halves": lambda at: gguf_file(at, "llama", KINDS.BF16),
    "gguf, joined": lambda at: gguf_file(at, "mixtral", KINDS.Q4_0),
    "gguf, undone": lambda at: gguf_file(at, "qwen3_next"),
    "gguf, streams": lambda at: gguf_file(at, "gemma3n_text", KINDS.BF16, **STREAMS),
}


def write(kind, directory):
    """The file or folder of this kind, in the directory."""
    suffix = ".gguf" if "gguf" in kind else ""
    return WRITTEN[kind](directory / f"{kind.replace(' ', '-').replace(',', '')}{suffix}")
