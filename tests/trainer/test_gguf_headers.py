"""Headers of GGUF files: what they say of each family's decoder, or why they are refused."""

import gguf_files
import numpy as np
import pytest

from jlora.models import DeltaRule, Experts, Latent
from jlora.models._files._gguf import opened
from jlora.models._files._gguf_header import _layer_types

SMALL = {
    "vocab_size": 11,
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_hidden_layers": 7,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 700.0,
    "sliding_window": 5,
}


def config_of(tmp_path, family, changes=(), **options):
    settings = {**SMALL, "model_type": family, **dict(changes)}
    path = gguf_files.write(tmp_path / "tiny.gguf", settings, {}, pre="qwen2", **options)
    return opened(path).config


GEMMA2 = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}


def test_what_a_header_leaves_out_is_as_llama_cpp_takes_it(tmp_path):
    config = config_of(tmp_path, "gemma2", GEMMA2)
    assert config.windows == (5, None, 5, None, 5, None, 5)
    assert (config.query_scalar, config.rope_theta) == (8, 10000.0)
    largest = config_of(tmp_path, "gemma2", {**GEMMA2, "num_hidden_layers": 46})
    assert largest.query_scalar == 6  # the width over the heads
    local = config_of(tmp_path, "gemma3_text")
    assert local.windows == (5, 5, 5, 5, 5, None, 5)
    assert (local.rope_theta, local.local_rope_theta) == (700.0, 10000.0)
    largest = config_of(tmp_path, "gemma3_text", {"num_hidden_layers": 62})
    assert largest.query_scalar == 6


def test_multipliers_and_windows_may_be_left_out(tmp_path):
    assert config_of(tmp_path, "gemma2", {**GEMMA2, "sliding_window": None}).windows[0] == 4096
    assert config_of(tmp_path, "gemma3_text", {"sliding_window": None}).windows is None
    silent = dict.fromkeys(
        ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
    )
    config = config_of(tmp_path, "granite", {**silent, "hidden_size": 16})
    assert config.score_scale == 8**-0.5
    assert (config.embedding_scale, config.residual_scale, config.logit_scale) == (1, 1, 1)


def test_an_architecture_of_two_families_is_told_apart_by_its_header(tmp_path):
    assert config_of(tmp_path, "olmo2", {"sliding_window": None}).family == "olmo2"
    kinds = ["sliding_attention", "full_attention"] * 3 + ["full_attention"]
    config = config_of(tmp_path, "olmo3", {"layer_types": kinds})
    assert config.family == "olmo3"
    assert config.windows == (5, None, 5, None, 5, None, None)
    assert config.local_rope_theta == 700.0  # the one base, of which older headers speak
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2}
    assert config_of(tmp_path, "mixtral", experts).family == "mixtral"
    assert config_of(tmp_path, "mixtral", {"num_local_experts": 0}).family == "llama"


DEEPSEEK = {
    "num_key_value_heads": 2,
    "head_dim": None,
    "q_lora_rank": 5,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 7,
    "qk_rope_head_dim": 4,
    "v_head_dim": 3,
    "n_routed_experts": 9,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 10,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 1.5,
}
GROUPS = {"n_group": 3, "topk_group": 2}


def test_deepseek_s_generations_are_told_apart_by_how_experts_are_chosen(tmp_path):
    third = config_of(tmp_path, "deepseek_v3", {**DEEPSEEK, **GROUPS, "norm_topk_prob": True})
    assert third.family == "deepseek_v3"
    assert third.experts == Experts(
        *(9, 2, 10, True),
        shared_width=20,
        sigmoid=True,
        corrected=True,
        groups=3,
        chosen_groups=2,
        best_of_group=2,
        scale=1.5,
        wide_router=True,
    )
    second = config_of(tmp_path, "deepseek_v2", {**DEEPSEEK, **GROUPS})
    assert (second.family, second.experts.sigmoid) == ("deepseek_v2", False)
    assert (second.experts.groups, second.experts.best_of_group) == (3, 1)
    lite = config_of(tmp_path, "deepseek_v2", {**DEEPSEEK, "q_lora_rank": None})
    assert (lite.latent.query_width, lite.experts.groups) == (None, 1)
    assert lite.expert_layers == (False,) * 3 + (True,) * 4


def test_headers_from_before_heads_had_two_lengths_say_the_same(tmp_path):
    new = config_of(tmp_path, "deepseek_v3", DEEPSEEK)
    assert new.latent == Latent(width=6, query_width=5, plain=7, rotated=4, value=3)
    old = config_of(
        tmp_path,
        *("deepseek_v3", DEEPSEEK),
        left_out=("key_length", "key_length_mla", "value_length", "value_length_mla"),
        header=[("add_key_length", 11), ("add_value_length", 3)],
    )
    assert old == new


QWEN3_NEXT = {
    "num_experts": 9,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 5,
    "shared_expert_intermediate_size": 6,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 7,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}


def test_linear_attention_is_in_the_header_by_llama_cpp_s_names(tmp_path):
    config = config_of(tmp_path, "qwen3_next", QWEN3_NEXT)
    assert config.linear == DeltaRule(2, 6, 4, 7, taps=3)
    assert config.linear_layers == (True, True, False, True, True, False, True)
    assert config.rotary_share == 0.25
    silent = config_of(tmp_path, "qwen3_next", QWEN3_NEXT, left_out=["full_attention_interval"])
    assert silent.linear_layers == (True, True, True, False, True, True, True)


def test_a_bias_of_any_layer_says_that_there_are_biases(tmp_path):
    assert not config_of(tmp_path, "qwen3_next", QWEN3_NEXT).qkv_bias
    bias = {"blk.2.attn_q.bias": np.ones(32, np.float32)}
    assert config_of(tmp_path, "qwen3_next", QWEN3_NEXT, further=bias).qkv_bias


@pytest.mark.parametrize(
    ("pattern", "slides"),
    [
        (3, [True, True, False, True, True]),
        (1, [False] * 5),
        (0, [True] * 5),
        ([False, True, False, False, True], [False, True, False, False, True]),
    ],
)
def test_a_pattern_of_windows_is_a_period_or_a_flag_for_each_layer(pattern, slides):
    kinds = ["sliding_attention" if each else "full_attention" for each in slides]
    assert _layer_types(pattern, 5) == kinds


def test_numbers_of_32_bits_are_those_that_were_written(tmp_path):
    config = config_of(tmp_path, "llama", {"rms_norm_eps": 1e-5, "rope_theta": 1234.1})
    assert (config.norm_epsilon, config.rope_theta) == (1e-5, 1234.1)


REFUSED = {
    "a second base": (
        "qwen3",
        {"header": [("add_rope_freq_base_swa", 40.0)]},
        "rope.freq_base_swa is 40.0, but only 700.0 is supported",
    ),
    "values of another width": (
        "llama",
        {"header": [("add_value_length", 6)]},
        "attention.value_length is 6, but only 8 is supported",
    ),
    "attention in both directions": (
        "llama",
        {"header": [("add_causal_attention", False)]},
        "attention.causal is False",
    ),
    "a temperature": (
        "mistral",
        {
            "architecture": "mistral3",
            "header": [("add_float32", "mistral3.attention.temperature_scale", 0.1)],
        },
        "temperature_scale is 0.1: jlora.models does not know this entry",
    ),
    "yarn by nothing": (
        "qwen3",
        {"header": [("add_string", "qwen3.rope.scaling.type", "yarn")]},
        "RoPE scaling of type 'yarn' has no rope.scaling.factor",
    ),
    "longrope without its factors": (
        "phi3",
        {"header": [("add_string", "phi3.rope.scaling.type", "longrope")]},
        "longrope with rope_factors_long.weight and rope_factors_short.weight",
    ),
    "kinds for fewer layers": (
        "exaone4",
        {},
        "layer_types has 2 entries, expected 7",
    ),
}
OWN = {
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"original_max_position_embeddings": 16, "head_dim": None, "hidden_size": 16},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_decoder_does_not_have_is_named(kind, tmp_path):
    family, options, told = REFUSED[kind]
    settings = {**SMALL, "model_type": family, **OWN.get(family, {})}
    settings = {name: value for name, value in settings.items() if value is not None}
    path = tmp_path / "tiny.gguf"
    gguf_files.write(path, settings, {}, pre="qwen2", **options)
    with pytest.raises(ValueError, match=r"tiny\.gguf") as caught:
        opened(path)
    assert told in str(caught.value)
