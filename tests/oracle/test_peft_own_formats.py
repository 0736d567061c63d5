"""A method outside the package whose files and outputs are PEFT's: `examples/vera.py`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from beside_peft import (
    TOKENS,
    adapted_in_peft,
    assert_merged_alike,
    assert_near,
    assert_same_tensors,
    base,
    in_peft,
    logits_of,
)
from laws import example

import jlora

# PEFT's own
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

vera = example("vera")


def peft_config(**options):
    return peft.VeraConfig(r=6, d_initial=0.3, projection_prng_key=5, **options)


ADAPTERS = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "matrices of many sizes": {"target_modules": ["q_proj", "k_proj", "up_proj", "down_proj"]},
}


@pytest.mark.parametrize("which", ADAPTERS)
def test_vera_of_peft_is_the_same_in_jlora_and_back(which, tmp_path, caplog):
    oracle, model, axes, logits = base("llama")
    theirs = logits_of(adapted_in_peft(oracle, tmp_path / "theirs", peft_config(**ADAPTERS[which])))
    plain = logits_of(oracle)
    assert np.abs(theirs - plain).max() > 0.03 * np.abs(plain).max()

    lora, config = jlora.peft.load(tmp_path / "theirs", model, axes=axes)
    assert config.method == "vera"
    assert config.options == {"d_initial": 0.3}
    merged = jlora.merge(model.params, lora)
    assert_near(logits(merged), theirs)
    lifted = jlora.lift(model.apply, strict=True)
    assert_near(jax.jit(lifted)(model.params, lora, jnp.asarray(TOKENS)), theirs)

    jlora.peft.save(tmp_path / "ours", lora, config, model)
    assert_same_tensors(tmp_path / "ours", tmp_path / "theirs")
    again = in_peft(oracle, tmp_path / "ours", caplog)
    np.testing.assert_allclose(logits_of(again), theirs, atol=1e-5 * np.abs(theirs).max())
    assert_merged_alike(merged, model, again.merge_and_unload())


def test_what_vera_of_jlora_starts_with_works_in_peft(tmp_path, caplog):
    oracle, model, axes, logits = base("llama")
    config = jlora.LoraConfig(targets="q_proj|up_proj", method=vera.VeraWeight, rank=5)
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    moved = {  # as if trained
        path: jax.tree.map(lambda leaf: leaf + 0.2, node) if path in frozen_paths(lora) else node
        for path, node in lora.items()
    }
    jlora.peft.save(tmp_path / "ours", moved, config, model)
    adapted = in_peft(oracle, tmp_path / "ours", caplog)
    assert_near(logits(jlora.merge(frozen, moved)), logits_of(adapted))


def frozen_paths(lora):
    return [path for path in lora if not path.startswith("shared/")]


def test_gradients_are_those_of_torch(tmp_path):
    oracle, model, axes, _ = base("llama")
    adapted = adapted_in_peft(oracle, tmp_path / "theirs", peft_config(target_modules=["q_proj"]))
    adapted.train()
    (adapted(torch.tensor(TOKENS)).logits.float() ** 2).mean().backward()
    lora, _ = jlora.peft.load(tmp_path / "theirs", model, axes=axes)
    loss = jlora.lift(lambda params, tokens: (model.apply(params, tokens) ** 2).mean())
    grads = jax.grad(loss, argnums=1, allow_int=True)(model.params, lora, jnp.asarray(TOKENS))
    checked = 0
    for name, parameter in adapted.named_parameters():
        if parameter.grad is None or "vera_lambda" not in name:
            continue
        layer = int(name.split(".layers.")[1].split(".")[0])
        [node] = (node for path, node in grads.items() if "q_proj" in path)
        ours = node.d[layer] if "lambda_d" in name else node.b[layer].reshape(-1)
        assert_near(ours, parameter.grad.numpy(), 1e-3)
        checked += 1
    assert checked == 2 * len(oracle.model.layers)


def test_what_this_vera_has_not_is_named(tmp_path):
    oracle, model, axes, _ = base("llama")
    adapted_in_peft(oracle, tmp_path, peft_config(target_modules=["q_proj"]))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vera_dropout": 0.1}))
    with pytest.raises(ValueError, match=r"vera_dropout is 0\.1: expected 0\.0"):
        jlora.peft.load(tmp_path, model, axes=axes)
