"""Every setting that transformers writes for a family is honoured, or known to change nothing."""

import numpy as np
import pytest
from transformers import CONFIG_MAPPING, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jlora.models import _families
from jlora.models._files._gguf_rope import of_divisors

# Of the settings without which transformers makes a configuration, and no model.
NEEDED = {"deepseek_v2": {"num_experts_per_tok": 6}}


@pytest.mark.parametrize("family", _families.FAMILIES)
def test_every_setting_that_transformers_writes_is_known(family):
    config = CONFIG_MAPPING[family](**NEEDED.get(family, {}))
    whole = _families.from_huggingface(config.to_dict(), "all settings")
    assert _families.from_huggingface(config.to_diff_dict(), "those that differ") == whole


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_divisors_of_a_gguf_file_give_the_frequencies_of_transformers(factor):
    said = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, head_dim=64, rope_parameters=said)
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(32) / 32)
    scaling = of_divisors((plain / stretched.numpy()).astype(np.float32), 500000.0)
    ours = _families.from_huggingface(config.to_dict(), "the settings")
    assert ours.rope_scaling == scaling
    turned = ours.rope_scaling.frequencies(ours.rope_theta, ours.head_dim, None)
    np.testing.assert_allclose(turned, stretched.numpy(), rtol=1e-6)
