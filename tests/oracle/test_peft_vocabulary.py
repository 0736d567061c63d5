"""PEFT's adapters of models with further tokens, and of one side of a tied table, in jlora."""

import copy
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from beside_peft import adapted_in_peft, assert_near
from random_models import both

import jlora
import jlora.peft
from jlora import models

MORE = 5
ADAPTERS = {
    "tables beside": {"target_modules": ["q_proj"]},
    "tables whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tables adapted": {"target_modules": ["embed_tokens", "lm_head", "up_proj"]},
    "tied, tables beside": {"target_modules": ["q_proj"]},
    "tied, both adapted": {
        "target_modules": ["embed_tokens", "q_proj"],
        "ensure_weight_tying": True,
    },
}
ON_ONE_SIDE = {
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "the head": {"target_modules": ["lm_head", "q_proj"]},
    "both, each by its own": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "the head whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def compared(oracle, model, folder, options, highest, *, tables=False):
    tokens = np.random.default_rng(2).integers(0, highest, (2, 11))
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = adapted_in_peft(oracle, folder, config)
        if tables:  # as PEFT does where it can compare with the base's own size
            adapted.save_pretrained(folder, save_embedding_layers=True)
    with torch.no_grad():
        theirs = adapted(torch.tensor(tokens)).logits.numpy()
    model = models.with_vocabulary(model, jlora.peft.vocabulary(folder, model))
    lora, _ = jlora.peft.load(folder, model)
    merged = jlora.merge(model.params, lora)
    assert_near(jax.jit(model.apply)(merged, jnp.asarray(tokens)), theirs)
    return model


@pytest.mark.parametrize("which", ADAPTERS)
def test_further_tokens_are_those_of_peft(which, tmp_path):
    oracle, model, _ = both("llama, tied" if which.startswith("tied") else "llama")
    oracle = copy.deepcopy(oracle)
    torch.manual_seed(3)
    oracle.resize_token_embeddings(83 + MORE, mean_resizing=False)
    changed = compared(
        oracle, model, tmp_path / "a", ADAPTERS[which], 83 + MORE, tables="beside" in which
    )
    assert changed.config.vocabulary == 83 + MORE
    assert changed.config.tied == model.config.tied


@pytest.mark.parametrize("which", ON_ONE_SIDE)
def test_a_tied_table_adapted_on_one_side_is_as_in_peft(which, tmp_path):
    oracle, model, _ = both("llama, tied")
    changed = compared(oracle, model, tmp_path / "a", ON_ONE_SIDE[which], 83)
    assert not changed.config.tied
