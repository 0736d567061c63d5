"""Adapters of encoders: PEFT's own here, ours there, with the head that both train whole."""

import json
import re

import jax
import numpy as np
import peft
import pytest
import torch
from encoders import batch, class_of, close, each_family, in_torch, made, written
from safetensors.numpy import load_file, save_file

import jlora
import jlora.peft
from jlora import models

pytestmark = [
    # PEFT's own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

ADAPTERS = {
    "queries and values": {"target_modules": ["query", "value"]},
    "all linear layers": {"target_modules": "all-linear", "use_rslora": True},
    "the MLPs": {"target_modules": r".*\.layer\.\d\.(intermediate|output)\.dense"},
    "DoRA in one layer": {
        "target_modules": ["key", "attention.output.dense"],
        "layers_to_transform": [1],
        "use_dora": True,
    },
    "biases": {"target_modules": ["query"], "bias": "all"},
    "embedding": {"target_modules": ["word_embeddings", "query"]},
    "norms as well": {"target_modules": ["query"], "modules_to_save": ["LayerNorm"]},
}
HEAD = {
    "bert": {"classifier/out_proj/kernel", "classifier/out_proj/bias"},
    "roberta": {
        *("classifier/out_proj/kernel", "classifier/out_proj/bias"),
        *("classifier/dense/kernel", "classifier/dense/bias"),
    },
}
PREFIX = "base_model.model"


def whole(lora):
    return {path for path, node in lora.items() if type(node).__name__ == "WholeWeight"}


def shaken(module):
    """With other values in all that trains, so that nothing is as it starts."""
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


@each_family
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_of_peft_comes_and_goes(family, adapter, tmp_path):
    theirs = made(family, "ForSequenceClassification")
    model = models.load(written(theirs, tmp_path / "base"))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=7, **ADAPTERS[adapter])
    adapted = shaken(peft.get_peft_model(theirs, config)).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    inputs = batch(family)
    expected = adapted(**in_torch(inputs)).logits.detach()

    lora, ours = jlora.peft.load(tmp_path / "theirs", model)
    assert HEAD[family] <= whole(lora)
    close(model.apply(jlora.merge(model.params, lora), **inputs), expected)
    axes = jlora.trace_axes(model.apply, model.params, inputs["tokens"])
    _, fresh = jlora.split(model.params, ours, jax.random.key(0), axes=axes)
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, lora)

    jlora.peft.save(tmp_path / "ours", lora, ours, model)
    settings = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    assert "classifier" in settings["modules_to_save"]
    tensors = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    names = load_file(tmp_path / "theirs" / "adapter_model.safetensors").keys()
    again = re.compile("modules_to_save|original_module")  # biases, which PEFT writes three times
    assert tensors.keys() == {name for name in names if not again.search(name)}
    base = class_of(family, "ForSequenceClassification").from_pretrained(
        tmp_path / "base", attn_implementation="eager"
    )
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    close(again(**in_torch(inputs)).logits, expected)


def test_a_part_of_the_head_that_is_missing_is_named(tmp_path):
    theirs = made("roberta", "ForSequenceClassification")
    model = models.load(written(theirs, tmp_path / "base"))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query"])
    peft.get_peft_model(theirs, config).save_pretrained(tmp_path / "theirs")
    lora, _ = jlora.peft.load(tmp_path / "theirs", model)
    assert whole(lora) == HEAD["roberta"]  # trained or not
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[f"{PREFIX}.classifier.dense.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"classifier\.dense\.weight: missing"):
        jlora.peft.load(tmp_path / "theirs", model)


@each_family
@pytest.mark.filterwarnings("ignore:.*left aside")
def test_a_fresh_head_goes_to_peft(family, tmp_path):
    folder = written(made(family, "ForMaskedLM"), tmp_path / "base")
    model = models.with_classifier(models.load(folder), ("no", "yes", "so"), jax.random.key(2))
    assert model.config.labels == ("no", "yes", "so")
    config = jlora.LoraConfig(
        targets="(q|v)_proj/kernel",
        train="classifier|pooler" * (family == "bert") or "classifier",
        rank=3,
        alpha=7,
    )
    inputs = batch(family)
    axes = jlora.trace_axes(model.apply, model.params, inputs["tokens"])
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    pooler = {"pooler/kernel", "pooler/bias"} if family == "bert" else set()
    assert whole(lora) == HEAD[family] | pooler
    jlora.peft.save(tmp_path / "ours", lora, config, model)
    names = load_file(tmp_path / "ours" / "adapter_model.safetensors").keys()
    assert f"{PREFIX}.{family}.encoder.layer.0.attention.self.query.lora_A.weight" in names
    settings = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert set(settings["target_modules"]) == {"query", "value"}
    assert "classifier" in settings["modules_to_save"]
    base = class_of(family, "ForSequenceClassification").from_pretrained(
        folder, id2label={0: "no", 1: "yes", 2: "so"}, attn_implementation="eager"
    )
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    close(again(**in_torch(inputs)).logits, model.apply(jlora.merge(frozen, lora), **inputs))


@each_family
def test_an_adapter_of_a_model_without_a_head_comes_and_goes(family, tmp_path):
    theirs = made(family)
    model = models.load(written(theirs, tmp_path / "base"))
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=3, target_modules=["key", "dense"])
    adapted = shaken(peft.get_peft_model(theirs, config)).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    names = load_file(tmp_path / "theirs" / "adapter_model.safetensors").keys()
    assert f"{PREFIX}.encoder.layer.0.attention.self.key.lora_A.weight" in names
    lora, ours = jlora.peft.load(tmp_path / "theirs", model)
    inputs = batch(family)
    merged = jlora.merge(model.params, lora)
    expected = adapted(**in_torch(inputs))
    seen = inputs["mask"].astype(bool)
    hidden = model.hidden(merged, **inputs)
    close(hidden[seen], expected.last_hidden_state[torch.tensor(seen)])
    close(model.pooled(merged, hidden), expected.pooler_output)
    jlora.peft.save(tmp_path / "ours", lora, ours, model)
    settings = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert settings["task_type"] == "FEATURE_EXTRACTION"
    base = class_of(family, "Model").from_pretrained(tmp_path / "base", attn_implementation="eager")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    close(again(**in_torch(inputs)).pooler_output, expected.pooler_output)
