"""GGUF files of small models of every family, and of a llama whose tensors have packed types."""

import gguf
import gguf_files
import jax
import jax.numpy as jnp
import numpy as np
from family_settings import abstract_params, config_of

import jlora
from jlora import models
from jlora.models._families import FAMILIES
from jlora.models._files._stacking import layers_of, stacked, stored_of
from jlora.models._files._torch_tensors import oriented

KINDS = gguf.GGMLQuantizationType
READ = [name for name, family in FAMILIES.items() if family.gguf is not None]
# Of the small settings, what no GGUF file says: heads together wider than the model, say.
CHANGES = {
    "granite": {"hidden_size": 40},
    "granitemoe": {"hidden_size": 40},
    "gemma3n_text": {"laurel_rank": 64, "vocab_size_per_layer_input": 37},
}
# What the converter reads beside the settings that are written here.
BESIDE = {
    "llama4_text": {"interleave_moe_layer_step": 2},
    "gemma3n_text": {"altup_active_idx": 0},
    "phi3": {"original_max_position_embeddings": 64},
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
HALF = 2  # bytes
_SCALES = {KINDS.Q4_0: 1, KINDS.Q5_0: 1, KINDS.Q8_0: 1}  # of others a minimum too


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(at, simple=True, separator="/"): leaf for at, leaf in leaves}


def random_leaves(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = flat(abstract_params(config))
    return {path: rng.normal(0, 0.3, leaf.shape).astype("f4") for path, leaf in shapes.items()}


def parameters(config, leaves):
    """The model's parameters, by transformers' names in memory."""
    stored, named = FAMILIES[config.family].leaves, {}
    for path, value in leaves.items():
        its = stored_of(stored, path)
        for at, layer in enumerate(layers_of(path, value.shape)):
            named[its.name.format(layer)] = oriented(its, value[at] if stacked(path) else value)
    return named


def family_file(family, path):
    """A GGUF file of a small random model of the family."""
    config = config_of(family, **CHANGES.get(family, {}))
    settings = {**models.to_huggingface(config), **BESIDE.get(family, {})}
    tensors = parameters(config, random_leaves(config))
    return gguf_files.write(path, settings, tensors, pre="qwen2")


def packed_llama(path, kinds=None, *, every=None, header=(), pack=None):
    """A llama whose tensors have these types, by their names; or all that can, ``every``."""
    pack = pack or packed_as
    config = models.from_huggingface(LLAMA, "config.json")
    tensors = parameters(config, random_leaves(config))
    plain = gguf_files.write(path.with_suffix(".plain"), LLAMA, tensors)
    packed = {}
    for tensor in gguf.GGUFReader(plain).tensors:
        kind = (kinds or {}).get(tensor.name, every if len(tensor.shape) == 2 else None)
        if kind is not None:
            packed[tensor.name] = pack(np.array(tensor.data), KINDS[kind])
    plain.unlink()
    return gguf_files.write(path, LLAMA, tensors, header=header, further=packed)


def packed_as(weights, kind):
    """The weights in this type; random numbers where nothing encodes it."""
    try:
        return gguf.quantize(weights, kind), kind
    except NotImplementedError:
        return random_bytes(weights, kind)


def random_bytes(weights, kind):
    """Random numbers with sound scales, as no encoder here writes them."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(size)
    raw = rng.integers(0, 256, (*weights.shape[:-1], weights.shape[-1] // block, size), "u1")
    scales = rng.normal(0, 0.01, (*raw.shape[:-1], 2)).astype("<f2").view("u1")
    at = slice(size - HALF, size) if kind == KINDS.Q6_K else slice(0, _SCALES.get(kind, 2) * HALF)
    raw[..., at] = scales[..., : at.stop - at.start]
    return raw.reshape(*weights.shape[:-1], -1), kind


def tensors_of(path):
    """The tensors of a file, by name."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def decoded(tensor):
    """Its weights, in the file's order."""
    return gguf.dequantize(np.array(tensor.data), tensor.tensor_type)


def raw(tensor):
    return np.array(tensor.data).view("u1")


def entries(path):
    """What the header says, but for its counts."""
    fields = gguf.GGUFReader(path).fields
    return {name: its.contents() for name, its in fields.items() if not name.startswith("GGUF.")}


def delta(shape, seed=1, size=0.02):
    return size * np.random.default_rng(seed).normal(size=shape).astype("f4")


def moved_whole(model, *, aside=()):
    """An adapter that holds each leaf whole, moved: as many nodes as leaves."""
    leaves = flat(model.params)
    return {
        path: jlora.WholeWeight(jnp.asarray(value + delta(value.shape, size=0.2)))
        for path, value in leaves.items()
        if not path.endswith(tuple(aside))
    }


def check_family(family, folder):
    """A family's merged file holds the merged model; without a change it is the base's bytes."""
    base = family_file(family, folder / "base.gguf")
    model = models.load(base)
    kept = {path: jlora.WholeWeight(value) for path, value in flat(model.params).items()}
    same = models.export_gguf(base, folder / "same.gguf", lora=kept)
    assert same.path.read_bytes() == base.read_bytes()
    lora = moved_whole(model, aside=["A_log"])
    for path, value in flat(model.params).items():
        if path.endswith("A_log"):  # of rates: e to it is written
            lora[path] = jlora.WholeWeight(value - 0.25)
    merged = models.export_gguf(base, folder / "tuned.gguf", lora=lora)
    got = flat(models.load(merged.path).params)
    for path, value in flat(jlora.merge(model.params, lora)).items():
        np.testing.assert_allclose(got[path], value, atol=1e-6, err_msg=path)
    assert merged.survival > 0.999
