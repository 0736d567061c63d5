"""GGUF files of every architecture, of small random models, against transformers on torch.

The logits are those of the weights before they were converted. Where transformers reads the
architecture from GGUF as well, it reads the same file.
"""

import functools

import gguf
import gguf_files
import jax
import numpy as np
import pytest
import random_models
import torch
import transformers
import variants
from random_models import TOKENS, assert_near, logits_of
from variants import (
    BOTH_BIASES,
    DEEPSEEK,
    EAGER,
    GEMMA3N,
    LINEAR,
    LLAMA3,
    MIXTRAL,
    MOE,
    QWEN3_NEXT,
)

from jlora import models
from jlora.models._families import FAMILIES
from jlora.models._files._mxfp4_tensors import of_mxfp4

pytestmark = pytest.mark.usefixtures("compiled_fast")

SMALL = {**variants.SMALL, "hidden_size": 48}
SHARED = {"hidden_size": 48, "head_dim": 8}  # where the width is that of all heads together
YARN = {
    "rope_type": "yarn",
    "rope_theta": 700.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 5.0,
    "beta_slow": 0.4,
}
SHARPER = {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
BASE = {"rope_type": "default", "rope_theta": 700.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 300.0,
    "short_factor": [1.0, 1.1, 1.3, 1.9],
    "long_factor": [1.5, 2.0, 4.0, 7.0],
}
MULTIPLIERS = {
    "embedding_multiplier": 3.3,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.6,
    "logits_scaling": 7.0,
}
GPT2 = {
    "vocab_size": 83,
    "n_embd": 42,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 128,
    "n_inner": 168,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA4 = {
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "intermediate_size": 11,
    "intermediate_size_mlp": 52,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 1.0, "alpha": 30.0}
GPT_OSS = {
    "num_local_experts": 7,
    "num_experts_per_tok": 3,
    "intermediate_size": 11,
    "sliding_window": 7,
    "max_position_embeddings": 131072,
}
# A family, and what its config.json says beside the small settings.
VARIANTS = {
    "llama": ("llama", {"rms_norm_eps": 1e-3, "rope_parameters": BASE}),
    "llama, tied": ("llama", {"tie_word_embeddings": True, **BOTH_BIASES}),
    "llama, linear rope": ("llama", {"rope_parameters": LINEAR}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None, "rope_parameters": BASE}),
    "mixtral": ("mixtral", {**MIXTRAL, "rope_parameters": BASE}),
    "qwen2": ("qwen2", {**SHARED, "tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen2_moe": ("qwen2_moe", {**SHARED, **MOE, "shared_expert_intermediate_size": 9}),
    "qwen3": ("qwen3", {"rms_norm_eps": 1e-3}),
    "qwen3_moe": ("qwen3_moe", {**MOE, "norm_topk_prob": True, "rope_parameters": BASE}),
    "qwen3_next": ("qwen3_next", {**QWEN3_NEXT, "rms_norm_eps": 1e-3}),
    "qwen3_next, biases": (
        "qwen3_next",
        {
            **QWEN3_NEXT,
            "full_attention_interval": 4,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "linear_conv_kernel_dim": 3,
            "linear_num_value_heads": 6,
            "rope_parameters": {**YARN, "partial_rotary_factor": 0.4},
        },
    ),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 7,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "sliding_window": 7,
            "query_pre_attn_scalar": 10,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
            },
        },
    ),
    "gemma3n_text": (
        "gemma3n_text",
        {
            **GEMMA3N,
            "laurel_rank": 64,
            "vocab_size_per_layer_input": 83,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
            },
        },
    ),
    "phi3": ("phi3", {**SHARED, "head_dim": None, "sliding_window": 7}),
    "phi3, a share rotated": (
        "phi3",
        {**SHARED, "head_dim": None, "rope_parameters": {**BASE, "partial_rotary_factor": 0.5}},
    ),
    "phi3, longrope": (
        "phi3",
        {
            **SHARED,
            "head_dim": None,
            "original_max_position_embeddings": 20,
            "rope_parameters": LONGROPE,
        },
    ),
    "olmo2": ("olmo2", {**SHARED, "rms_norm_eps": 1e-3}),
    "olmo3": (
        "olmo3",
        {
            **SHARED,
            "num_hidden_layers": 5,
            "sliding_window": 7,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": BASE},
        },
    ),
    "granite": ("granite", {**SHARED, **MULTIPLIERS}),
    "granite, biases": ("granite", {**SHARED, **BOTH_BIASES, "tie_word_embeddings": True}),
    "granitemoe": ("granitemoe", {**SHARED, **MULTIPLIERS, **MIXTRAL}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "rope_parameters": BASE}),
    "starcoder2": ("starcoder2", {**SHARED, "norm_epsilon": 1e-3}),
    "glm4": ("glm4", {"head_dim": 12}),
    "glm4, all of each head": (
        "glm4",
        {"attention_bias": False, "rope_parameters": {**BASE, "partial_rotary_factor": 1.0}},
    ),
    "cohere": ("cohere", {**SHARED, "logit_scale": 0.7, "layer_norm_eps": 1e-3}),
    "cohere2": ("cohere2", {**SHARED, "num_hidden_layers": 5, "sliding_window": 7}),
    "exaone4": (
        "exaone4",
        {
            **SHARED,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "exaone4, no window": (
        "exaone4",
        {**SHARED, "sliding_window": None, "layer_types": ["full_attention"] * 3},
    ),
    "seed_oss": ("seed_oss", {}),
    "ernie4_5": ("ernie4_5", {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"rope_parameters": DYNAMIC}),
    "nemotron": ("nemotron", {**SHARED, "head_dim": None}),
    "arcee": ("arcee", {**SHARED, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "llama4_text": ("llama4_text", {**LLAMA4, "num_hidden_layers": 5, "rope_parameters": BASE}),
    "llama4_text, some layers dense, none cut": (
        "llama4_text",
        {
            **LLAMA4,
            "num_hidden_layers": 4,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": None,
            "no_rope_layers": [1] * 4,
            "attention_bias": True,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {**DEEPSEEK, "norm_topk_prob": True, "rope_parameters": SHARPER},
    ),
    "deepseek_v3, queries of the input": (
        "deepseek_v3",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "first_k_dense_replace": 2,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
            "rope_parameters": BASE,
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {**DEEPSEEK, "topk_method": "group_limited_greedy", "rope_parameters": SHARPER},
    ),
    "deepseek_v2, as Lite": (
        "deepseek_v2",
        {**DEEPSEEK, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "rope_parameters": YARN},
    ),
    "gpt_oss": ("gpt_oss", {**GPT_OSS, "rms_norm_eps": 1e-3}),
    "gpt_oss, no yarn": ("gpt_oss", {**GPT_OSS, "attention_bias": False, "rope_parameters": BASE}),
}


def randomised(family, changes):
    """A random model in torch, of the small settings with these changes."""
    settings = {**(GPT2 if family == "gpt2" else SMALL), **changes}
    settings = {name: value for name, value in settings.items() if name != "head_dim" or value}
    return random_models.randomised(transformers.AutoConfig.for_model(family, **settings))


@functools.cache
def oracle_of(variant):
    """The random model of a variant."""
    return randomised(*VARIANTS[variant])


def written(oracle, path, **options):
    """Its GGUF file."""
    held = dict(oracle.named_parameters())
    held |= {name: value for name, value in oracle.named_buffers() if "correction" in name}
    tensors = {name: value.detach().numpy() for name, value in held.items()}
    return gguf_files.write(path, oracle.config.to_dict(), tensors, pre="qwen2", **options)


def applied(model):
    return jax.jit(model.apply)(model.params, TOKENS)


def test_every_architecture_is_here():
    routes = {name for name, family in FAMILIES.items() if family.gguf is not None}
    assert routes == {family for family, _ in VARIANTS.values()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_logits_are_those_before_the_model_was_converted(variant, tmp_path):
    model = models.load(written(oracle_of(variant), tmp_path / "model.gguf"))
    assert_near(applied(model), logits_of(oracle_of(variant)), 1e-4)


# What no entry of the header says, and llama.cpp leaves out: they are other words for the same.
ASIDE = {
    "mistral": {"family": "llama"},
    "hunyuan_v1_dense": {"rope_theta": None},  # in 32 bits
    "phi3, longrope": {"rope_scaling": None},  # its sharpness in 32 bits
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_configuration_is_that_of_the_original_settings(variant, tmp_path):
    ours = vars(models.outline(written(oracle_of(variant), tmp_path / "model.gguf")).config)
    settings = oracle_of(variant).config.to_dict()
    theirs = vars(models.from_huggingface(settings, "config.json"))
    aside = ASIDE.get(variant, {})
    assert {**ours, **aside} == {**theirs, **aside}


def test_llama_3_stretches_frequencies_by_a_tensor_of_divisors(tmp_path):
    oracle = randomised("llama", {"rope_parameters": LLAMA3})
    plain = 500.0 ** -(np.arange(0, 10, 2) / 10)
    divisors = (plain / oracle.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    further = {"rope_freqs.weight": divisors}
    path = written(oracle, tmp_path / "model.gguf", further=further)
    assert_near(applied(models.load(path)), logits_of(oracle), 1e-4)


def in_one(oracle):
    """Qwen3-Next's projections as older files hold them: as transformers does."""
    whole, name = {}, "linear_attn.in_proj_qkvz.weight"
    for layer in range(oracle.config.num_hidden_layers):
        parameter = f"model.layers.{layer}.{name}"
        if parameter in dict(oracle.named_parameters()):
            whole[f"blk.{layer}.ssm_in.weight"] = oracle.get_parameter(parameter).detach().numpy()
            whole |= {f"blk.{layer}.attn_{part}.weight": None for part in ("qkv", "gate")}
    return whole


def test_qwen3_next_s_projections_may_lie_in_one(tmp_path):
    oracle = oracle_of("qwen3_next")
    whole = in_one(oracle)
    assert len(whole) == 9  # three layers of five
    apart = models.load(written(oracle, tmp_path / "apart.gguf"))
    model = models.load(written(oracle, tmp_path / "model.gguf", further=whole))
    assert jax.tree.all(jax.tree.map(np.array_equal, apart.params, model.params))


def test_parts_that_are_not_those_of_the_header_are_named(tmp_path):
    rows = {"attn_qkv": 43, "attn_gate": 21}  # as many as are asked for, but not of each
    further = {
        f"blk.0.{name}.weight": np.ones((count, 48), np.float32) for name, count in rows.items()
    }
    path = written(oracle_of("qwen3_next"), tmp_path / "model.gguf", further=further)
    with pytest.raises(ValueError, match=r"attn_qkv.weight of shape \(43, 48\), .*no blk.0.ssm_in"):
        models.load(path)


def random_mxfp4(experts, inputs, outputs):
    """Blocks of 4 bits and their exponents, as a Hugging Face folder holds random experts."""
    rng = np.random.default_rng(outputs)
    shape = (experts, outputs, inputs // 32)
    blocks = rng.integers(0, 256, (*shape, 16)).astype(np.uint8)
    return blocks, rng.integers(120, 126, shape).astype(np.uint8)


def repacked(blocks, exponents):
    """The same in GGUF's order: a byte holds a block's number k and k + 16, behind the exponent."""
    numbers = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    halves = numbers[..., :16] | numbers[..., 16:] << 4
    return np.concatenate([exponents[..., None], halves], -1).reshape(*blocks.shape[:2], -1)


def test_mxfp4_experts_are_those_of_the_folder_that_the_file_was_made_of(tmp_path):
    changes = {**GPT_OSS, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}
    oracle = randomised("gpt_oss", changes)
    packed, kinds, name = {}, gguf.GGMLQuantizationType, "model.layers.0.mlp.experts"
    for module, parts in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
        parameter = oracle.get_parameter(f"{name}.{module}")
        blocks, exponents = random_mxfp4(*parameter.shape)
        parameter.data = torch.tensor(of_mxfp4(blocks, exponents))
        for at, part in enumerate(parts):
            rows = (slice(None), slice(at, None, len(parts)))
            packed[f"blk.0.ffn_{part}_exps.weight"] = repacked(blocks[rows], exponents[rows])
    further = {name: (value, kinds.MXFP4) for name, value in packed.items()}
    path = written(oracle, tmp_path / "model.gguf", further=further)
    assert_near(applied(models.load(path)), logits_of(oracle), 1e-4)


# What transformers reads of GGUF files, an independent check of what is written here: most of a
# header it leaves aside, so the settings are its own defaults.
READ_BY_TRANSFORMERS = {
    "llama": {},
    "qwen2": SHARED,
    "qwen2_moe": {
        **SHARED,
        **MOE,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {**MOE, "moe_intermediate_size": 768, "norm_topk_prob": True},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 7},
    "gemma3_text": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 7},
    "phi3": {**SHARED, "head_dim": None, "sliding_window": None},
    "starcoder2": SHARED,
    "nemotron": {**SHARED, "head_dim": None},
    "gpt2": {"n_positions": 1024},
}


@pytest.mark.parametrize("family", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_from_the_file(family, tmp_path):
    oracle = randomised(family, READ_BY_TRANSFORMERS[family])
    path = written(oracle, tmp_path / "model.gguf", header=[("add_pad_token_id", 0)])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, **EAGER
    )
    assert_near(applied(models.load(path)), logits_of(theirs), 1e-4)
