"""Settings of every family: they come back, and what the decoder has not is named."""

import dataclasses

import pytest
from family_settings import config_of

from jlora import models
from jlora.models import DecoderConfig
from jlora.models._families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_come_back_from_the_configuration(family):
    config = config_of(family)
    written = models.to_huggingface(config)
    assert written["model_type"] == family
    assert models.from_huggingface(written, "config.json") == config


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("mistral", {"hidden_act": "mish"}, ["hidden_act is 'mish', but only 'silu'"]),
        (
            "qwen2",
            {"use_sliding_window": True, "layer_types": ["full_attention", "chunked"]},
            ["layer_types has 2 entries, expected 3", "layer_types has 'chunked': expected"],
        ),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, ["but there is no window"]),
        (
            "qwen3_moe",
            {"mlp_only_layers": "1", "decoder_sparse_step": True, "num_experts": None},
            [
                "mlp_only_layers is '1': expected a list",
                "decoder_sparse_step is True: expected a number",
                "num_experts is missing",
            ],
        ),
        ("qwen3_moe", {"num_experts_per_tok": 6}, ["6 of 5 experts can't be chosen"]),
        (
            "gemma2",
            {"use_bidirectional_attention": True, "rope_scaling": {"type": "ntk"}},
            [
                "use_bidirectional_attention is True, but only False is supported",
                "RoPE scaling of type 'ntk': expected none, 'linear', 'llama3', 'yarn', 'longrope'",
            ],
        ),
        (
            "gemma3_text",
            {
                "attn_logit_softcapping": 50.0,
                "rope_parameters": {
                    "full_attention": {"rope_type": "yarn", "factor": "8", "truncate": False},
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0},
                },
            },
            [
                "attn_logit_softcapping is 50.0, but only None is supported",
                "RoPE scaling of type 'yarn' has factor '8': expected a number above 0",
                "truncate is false, but only true is supported",
                "RoPE scaling of type 'linear': expected none",
            ],
        ),
        (
            "gemma3n_text",
            {
                "intermediate_size": [26, 26, 27, 26, 26, 26],
                "activation_sparsity_pattern": [0.9],
                "altup_active_idx": 1,
                "altup_correct_scale": False,
                "laurel_rank": None,
            },
            [
                "intermediate_size has 6 entries, 2 of them different: expected the same one",
                "activation_sparsity_pattern has 1 entries, expected 6",
                "altup_active_idx is 1, but only 0 is supported",
                "altup_correct_scale is False, but only True is supported",
                "laurel_rank is missing",
            ],
        ),
        (
            "gemma3n_text",
            {"num_kv_shared_layers": 4, "altup_num_inputs": 1, "layer_types": None},
            [
                "streams is 1: expected at least 2",
                "the last 4 layers have windows (5, 5, None, 5): expected each among those of the "
                "layers before, (5, 5)",
            ],
        ),
        ("gemma3n_text", {"num_kv_shared_layers": 6}, ["borrowing is 6: expected at least 1 of 6"]),
        (
            "gemma3n_text",
            {"activation_sparsity_pattern": [1.0] * 6, "hidden_size_per_layer_input": 0},
            ["sparsity is (1.0, ", "width=0): expected numbers of at least 1"],
        ),
        (
            "smollm3",
            {"no_rope_layers": [1, 0], "mlp_bias": True, "hidden_act": "mish"},
            ["no_rope_layers has 2 entries, expected at least 3", "hidden_act is 'mish'"],
        ),
        ("granite", {"logits_scaling": 0}, ["logits_scaling is 0, by which nothing can be"]),
        ("cohere", {"use_qk_norm": True}, ["use_qk_norm is True"]),
        (
            "cohere2",
            {"layer_switch": 2, "use_parallel_block": False},
            ["layer_switch is 2, but only 4", "use_parallel_block is False, but only True"],
        ),
        ("hunyuan_v1_dense", {"use_cla": True}, ["use_cla is True, but only False is supported"]),
        (
            "exaone4",
            {"sliding_window_pattern": "LLG"},
            ["sliding_window_pattern is 'LLG': expected a number"],
        ),
        (
            "qwen2_moe",
            {"decoder_sparse_step": 0, "shared_expert_intermediate_size": None},
            ["decoder_sparse_step", "shared_expert_intermediate_size is missing"],
        ),
        (
            "llama4_text",
            {
                "layer_types": ["chunked_attention"] * 4 + ["sliding_attention"],
                "floor_scale": None,
                "attention_chunk_size": None,
                "no_rope_layers": [1],
            },
            [
                "layer_types has 'sliding_attention': expected",
                "there is no attention_chunk_size",
                "floor_scale is missing",
                "no_rope_layers has 1 entries, expected at least 5",
            ],
        ),
        ("nemotron", {"norm_eps": None}, ["norm_eps is missing"]),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 0]}},
            [
                "RoPE scaling of type 'longrope' has short_factor: expected a list of numbers "
                "above 0, lacks long_factor"
            ],
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1] * 5, "long_factor": [1] * 4}},
            ["long_factor of the RoPE scaling has 4 entries: expected 5"],
        ),
        (
            "qwen2",
            {
                "rope_scaling": {"type": "yarn", "factor": 4.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
            ["rope_scaling and rope_parameters differ in rope_type"],
        ),
        ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5, but only 1.0"]),
        ("llama", {"rope_scaling": {"type": "linear"}}, ["of type 'linear' lacks factor"]),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True, "n_embd": 30},
            [
                "scale_attn_by_inverse_layer_idx is True, but only False is supported",
                "add_cross_attention is True, but only False is supported",
                "n_embd is 30: expected a multiple of n_head, 4",
            ],
        ),
    ],
)
def test_settings_that_the_decoder_has_not_are_named_all_at_once(family, changes, told):
    with pytest.raises(ValueError, match=r"^config\.json: ") as caught:
        config_of(family, **changes)
    for part in told:
        assert part in str(caught.value)


def test_a_decoder_that_its_family_has_no_settings_for_is_not_written():
    odd = dataclasses.replace(config_of("mistral"), windows=(3, None, 5), qk_norm=True)
    with pytest.raises(
        ValueError, match=r"no config\.json can say this: .*qk_norm is True.*windows"
    ):
        models.to_huggingface(odd)


def test_what_can_not_be_a_decoder_is_named_all_at_once():
    with pytest.raises(ValueError, match="model configuration") as caught:
        DecoderConfig(
            **{**dataclasses.asdict(config_of("llama")), "activation": "mish", "windows": (1, 0)}
        )
    for part in ("activation is 'mish': expected silu", "2 windows: expected 3", "at least 1"):
        assert part in str(caught.value)
