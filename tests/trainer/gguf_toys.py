"""A random model of each family as llama.cpp's GGUF file, and adapters of it."""

import family_settings
import gguf_files
import jax
import jax.numpy as jnp
import numpy as np

import jlora
from jlora import models
from jlora.models._families import FAMILIES
from jlora.models._files._stacking import layers_of

FAMILIES_OF_GGUF = [name for name, family in FAMILIES.items() if family.gguf is not None]
# The sizes that llama.cpp takes for given, or that no entry of a header says.
_WIDTH_OF_HEADS = {"hidden_size": 40}
AS_LLAMA_CPP_HAS_THEM = {
    **dict.fromkeys(
        (
            *("qwen2", "qwen2_moe", "olmo2", "olmo3", "granite", "granitemoe", "starcoder2"),
            *("cohere", "cohere2"),
        ),
        _WIDTH_OF_HEADS,
    ),
    "phi3": {**_WIDTH_OF_HEADS, "original_max_position_embeddings": 64},
    "glm4": {"head_dim": 8},
    "nemotron": {"head_dim": 12, "hidden_size": 48},
    "exaone4": {**_WIDTH_OF_HEADS, "sliding_window": None, "layer_types": ["full_attention"] * 3},
    "qwen3_next": {"linear_value_head_dim": 4},
    "deepseek_v2": {"q_lora_rank": 9, "n_group": 1, "topk_group": 1},
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
        "activation_sparsity_pattern": [0.95] * 5,
        "altup_num_inputs": 4,
        "altup_active_idx": 0,
        "laurel_rank": 64,
        "intermediate_size": 4096,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 37,
    },
}
_TURNED = ("linear", "router", "experts")


def write(path, family, *, architecture=None, **changes):
    """The file of a random model."""
    changes = {**AS_LLAMA_CPP_HAS_THEM.get(family, {}), **changes}
    config = family_settings.config_of(family, **changes)
    params = family_settings.random_params(config)
    given = {**family_settings.SETTINGS[family], **changes}
    settings = {**given, **models.to_huggingface(config)}
    tensors = tensors_of(config, params)
    return gguf_files.write(path, settings, tensors, pre="qwen2", architecture=architecture)


def tensors_of(config, params):
    """The parameters by transformers' names, as it has them in memory."""
    stored = models.Model(params, config, tokenizer=None, name="toy").stored
    tensors = {}
    for path, leaf in flat(params).items():
        its = stored[path]
        for at, layer in enumerate(layers_of(path, leaf.shape)):
            value = np.asarray(leaf)[at] if path.startswith("layers/") else np.asarray(leaf)
            turned = value.swapaxes(-1, -2) if its.kind in _TURNED else value
            tensors[its.name.format(layer)] = turned
    return tensors


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def axes_of(model):
    """How each weight of a model is used."""
    return jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 4), int))


def adapter(model, targets, *, axes=None, seed=1, strength=0.3, **options):
    """(lora, config): random A and B of some of a model's leaves; alpha is not the rank."""
    config = jlora.LoraConfig(**{"targets": targets, "rank": 3, "alpha": 5, **options})
    axes = axes or axes_of(model)
    _, lora = jlora.split(model.params, config, jax.random.key(seed), axes=axes)
    rng = np.random.default_rng(seed)

    def drawn(leaf, trains):
        noise = strength * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
        return noise if trains else leaf

    return jax.tree.map(drawn, lora, jlora.mask(lora)), config
