"""Small random models of every family against transformers on torch.

Logits, gradients of adapters, greedy answers, and the files and settings in both directions.
"""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from jlora import models

SMALL = {
    "vocab_size": 83,
    "hidden_size": 42,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0}
MOE = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 11}
WINDOWS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
GEMMA = {"sliding_window": 7, "query_pre_attn_scalar": 13}
PHI = {"hidden_size": 60, "head_dim": None}
GPT2 = {
    "vocab_size": 83,
    "n_embd": 42,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VARIANTS = {
    "llama": ("llama", {}),
    "llama, one key-value head each": ("llama", {"num_key_value_heads": 6}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, another base": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}},
    ),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear rope": ("llama", {"rope_parameters": LINEAR}),
    "llama, biases": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    ),
    "mistral": ("mistral", {"sliding_window": 7}),
    "mistral, no window": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("qwen2", {"hidden_size": 36, "head_dim": None, "tie_word_embeddings": True}),
    "qwen2, windows": ("qwen2", {"hidden_size": 36, "head_dim": None, **WINDOWS}),
    "qwen3": ("qwen3", {}),
    "qwen3, windows and biases": ("qwen3", {"attention_bias": True, **WINDOWS}),
    "qwen3_moe": ("qwen3_moe", {**MOE, "norm_topk_prob": True}),
    "qwen3_moe, window": ("qwen3_moe", {**MOE, **WINDOWS, "attention_bias": True}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}),
    "gemma2, no caps": (
        "gemma2",
        {
            **GEMMA,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "hidden_activation": "gelu",
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            **GEMMA,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
            },
        },
    ),
    "gemma3_text, all local": ("gemma3_text", {**GEMMA, "final_logit_softcapping": 4.0}),
    "phi3": ("phi3", {**PHI, "sliding_window": 7}),
    "phi3, a share rotated": ("phi3", {**PHI, "partial_rotary_factor": 0.6}),
    "phi3, an odd share rotated": ("phi3", {**PHI, "partial_rotary_factor": 0.55}),
    "gpt2": ("gpt2", {}),
    "gpt2, untied": (
        "gpt2",
        {
            "tie_word_embeddings": False,
            "n_inner": 52,
            "scale_attn_weights": False,
            "activation_function": "relu",
        },
    ),
}
TOKENS = np.random.default_rng(0).integers(3, 83, (2, 61))
PROMPTS = [list(range(5, 22)), [44, 9, 71], [17, 60, 61, 5, 5, 80, 12, 33, 8, 20, 31]]


def settings_of(variant):
    """(model type, what a user would write into config.json)."""
    family, changes = VARIANTS[variant]
    settings = {**(GPT2 if family == "gpt2" else SMALL), **changes}
    if settings.get("head_dim", 1) is None:
        del settings["head_dim"]
    return family, settings


def randomised(config):
    """A random model in torch."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():  # norms and biases too: a one or zero would hide itself
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@functools.cache
def both(variant):
    """(a random model in torch, the same in jlora, its folder)."""
    family, settings = settings_of(variant)
    oracle = randomised(transformers.AutoConfig.for_model(family, **settings))
    folder = Path(tempfile.mkdtemp())
    oracle.save_pretrained(folder)
    save_tokenizer(folder)
    return oracle, models.load(folder), folder


def save_tokenizer(folder):
    vocabulary = {f"t{k}": k for k in range(83)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.save(str(folder / "tokenizer.json"))


def logits_of(oracle):
    with torch.no_grad():
        return oracle(torch.tensor(TOKENS)).logits.numpy()


def assert_near(ours, theirs, share):
    assert np.abs(np.asarray(ours) - theirs).max() < share * theirs.std()


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def per_layer(path, leaf):
    """(layer, that layer's value) of a stacked leaf; (0, the leaf) of another."""
    return enumerate(leaf) if path.startswith("layers/") else [(0, leaf)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant):
    oracle, model, _ = both(variant)
    assert_near(model.apply(model.params, jnp.asarray(TOKENS)), logits_of(oracle), 1e-4)
