"""Settings of every family as transformers reads them: sparse ones, older ones, defaults."""

import json

import pytest
import transformers
from random_models import settings_of
from variants import LONGROPE, SMALL, VARIANTS

from jlora import models
from jlora.models._families import FAMILIES


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_that_are_left_out_are_those_of_transformers(variant):
    family, settings = settings_of(variant)
    whole = transformers.AutoConfig.for_model(family, **settings).to_dict()
    sparse = models.from_huggingface({**settings, "model_type": family}, "config.json")
    assert sparse == models.from_huggingface(whole, "config.json")
    assert models.from_huggingface(models.to_huggingface(sparse), "config.json") == sparse


OLDER = {
    "gemma3_text": {
        **SMALL,
        "num_hidden_layers": 7,
        "rope_theta": 500.0,
        "rope_local_base_freq": 30.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3,
    },
    "gemma3n_text": {
        **SMALL,
        "num_hidden_layers": 11,
        "num_kv_shared_layers": 5,
        "intermediate_size": [52] * 11,
        "rope_theta": 500.0,
        "rope_local_base_freq": 30.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "altup_lr_multiplier": 1.0,
        "query_pre_attn_scalar": 256,
    },
    "llama": {**SMALL, "rope_theta": 700.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "phi3": {**SMALL, "head_dim": 7, "rope_theta": 90.0, "partial_rotary_factor": 0.5},
    "phi3, longrope": {
        **SMALL,
        "hidden_size": 60,
        "rope_theta": 90.0,
        "original_max_position_embeddings": 64,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": LONGROPE["short_factor"],
            "long_factor": LONGROPE["long_factor"],
        },
    },
    "qwen2, yarn": {
        **SMALL,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen3, yarn": {**SMALL, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "gpt_oss": {
        **SMALL,
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    "llama, dynamic": {**SMALL, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "qwen2": {**SMALL, "rope_theta": 1e6, "use_sliding_window": True, "max_window_layers": 2},
    "gemma2": {**SMALL, "rope_theta": 90.0, "hidden_act": "silu"},
    "gemma": {**SMALL, "hidden_act": "gelu", "hidden_activation": None, "rope_theta": 70.0},
    "mixtral": {**SMALL, "num_local_experts": 9, "rope_theta": 90.0},
    "olmo3": {
        **SMALL,
        "num_hidden_layers": 7,
        "rope_theta": 300.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "smollm3": {**SMALL, "rope_theta": 5e6, "no_rope_layers": [1, 0, 1, 1, 0]},
    "glm4": {**SMALL, "rope_theta": 90.0, "partial_rotary_factor": 0.4},
    "nemotron": {**SMALL, "rope_theta": 90.0, "partial_rotary_factor": 0.8},
    "cohere2": {
        **SMALL,
        "num_hidden_layers": 7,
        "rope_theta": 90.0,
        "sliding_window_pattern": 3,
        "layer_switch": 4,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "use_parallel_block": True,
    },
    "exaone4": {
        **SMALL,
        "rope_theta": 90.0,
        "sliding_window_pattern": "LG",
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "hunyuan_v1_dense": {
        **SMALL,
        "rope_theta": 90.0,
        "rope_scaling": {
            "type": "dynamic",
            "alpha": 9.0,
            "factor": 1.0,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    },
    "qwen3_moe": {**SMALL, "num_experts": 9, "sliding_window": None, "rope_theta": 1e6},
}


@pytest.mark.parametrize("variant", OLDER)
def test_settings_as_earlier_releases_wrote_them_mean_what_transformers_reads(variant):
    family, settings = variant.split(",")[0], OLDER[variant]
    ours = models.from_huggingface({**settings, "model_type": family}, "config.json")
    theirs = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(settings)))
    assert ours == models.from_huggingface(theirs.to_dict(), "config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    nested = FAMILIES[family].nested
    cls = transformers.CONFIG_MAPPING[nested.model_type if nested else family]
    assert FAMILIES[family].defaults == {
        name: getattr(cls, name) for name in FAMILIES[family].defaults
    }
