"""Decoders with a head for classification against transformers and PEFT on torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from random_models import TOKENS, assert_near, flat, per_layer, save_tokenizer, settings_of
from safetensors.numpy import load_file
from variants import EAGER

import jlora
import jlora.peft
from jlora import models
from jlora.models._families import FAMILIES
from jlora.models._families._labels import relabelled
from jlora.models._files._stacking import layers_of
from jlora.models._files._torch_tensors import oriented

pytestmark = [
    pytest.mark.usefixtures("compiled_fast"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*left aside, as no part of the decoder"),
]

LABELS = ("no", "yes", "so", "why", "how")
CLASSIFYING = [family for family in FAMILIES if FAMILIES[family].classifier is not None]
each_family = pytest.mark.parametrize("family", CLASSIFYING)
MASK = (np.arange(61) < np.array([[61], [23]])).astype(np.int32)
INPUTS = {"tokens": np.where(MASK, TOKENS, 0).astype(np.int32), "mask": MASK}
IN_TORCH = {
    "input_ids": torch.tensor(INPUTS["tokens"]).long(),
    "attention_mask": torch.tensor(MASK).long(),
}
AUTO = transformers.AutoModelForSequenceClassification


def made(family, folder):
    """A random classifier of transformers, saved to the folder."""
    _, settings = settings_of(family)
    names = {"id2label": dict(enumerate(LABELS))}
    config = transformers.AutoConfig.for_model(family, **settings, **names)
    config.get_text_config().pad_token_id = 0
    torch.manual_seed(0)
    oracle = AUTO.from_config(config, **EAGER)
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    oracle.save_pretrained(folder)
    save_tokenizer(folder)
    return oracle.eval()


def scores_of(oracle):
    with torch.no_grad():
        return oracle(**IN_TORCH).logits.numpy()


def adapted(model, **options):
    """(frozen, lora, config) with a random adapter on attention."""
    axes = jlora.trace_axes(model.apply, model.params, jnp.asarray(TOKENS))
    options = {"targets": "attn/.*(q|qkv|o|q_b)_proj/kernel", "rank": 3, "alpha": 5, **options}
    config = jlora.LoraConfig(**options)
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    return frozen, jax.tree.map(
        lambda leaf: (
            leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
            if leaf.ndim
            else leaf
        ),
        lora,
    ), config  # fmt: skip


def test_every_family_has_what_transformers_has():
    auto = transformers.models.auto.modeling_auto
    classes = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    assert {family for family in FAMILIES if family in classes} == set(CLASSIFYING)
    for family in CLASSIFYING:
        _, settings = settings_of(family)
        config = models.from_huggingface({"model_type": family, **settings}, "here")
        settings = models.to_huggingface(relabelled(config, LABELS, FAMILIES[family], family))
        assert settings["architectures"] == [classes[family]]
        assert transformers.AutoConfig.for_model(**settings).num_labels == 5


@each_family
def test_scores_and_gradients_of_adapters_are_those_of_transformers(family, tmp_path):
    oracle = made(family, tmp_path)
    model = models.load(tmp_path)
    assert model.config.labels == LABELS
    assert (model.task_type, model.head_names) == ("SEQ_CLS", ("classifier",))
    scores = jax.jit(model.classifier)(model.params, INPUTS)
    assert (scores.shape, scores.dtype) == ((2, 5), jnp.float32)
    assert_near(scores, scores_of(oracle), 1e-4)

    labels = np.array([3, 1], np.int32)
    frozen, lora, _ = adapted(model, targets="attn/.*kernel", train="classifier")
    merged = flat(jlora.merge(frozen, lora))
    parameters = dict(oracle.named_parameters())
    for path in lora:
        for layer, value in per_layer(path, np.asarray(merged[path])):
            held = np.ascontiguousarray(oriented(model.stored[path], value))
            parameters[model.names[path].format(layer)].data = torch.tensor(held)
    theirs = torch.nn.functional.cross_entropy(
        oracle(**IN_TORCH).logits, torch.tensor(labels).long(), reduction="sum"
    )
    theirs.backward()

    def loss(params):
        total, count = models.classification_loss(model, params, {**INPUTS, "labels": labels})
        return total + 0 * count

    lifted = jlora.lift(loss, strict=True)
    ours, grads = jax.jit(jax.value_and_grad(lifted, argnums=1))(frozen, lora)
    assert abs(float(ours) - theirs.item()) < 1e-4 * abs(theirs.item())
    for path, node in lora.items():
        each = layers_of(path, merged[path].shape)
        for at, layer in enumerate(each):
            held = parameters[model.names[path].format(layer)].grad.numpy()
            of_weight = oriented(model.stored[path], held)
            if node.kind == "whole":
                pairs = [(grads[path].value, of_weight)]
            else:
                a, b, s = (np.asarray(part) for part in (node.a, node.b, node.scaling))
                pairs = [
                    (grads[path].a[at], s * of_weight @ b[at].T),
                    (grads[path].b[at], s * a[at].T @ of_weight),
                ]
            for got, want in pairs:
                assert np.abs(want).max() > 0
                assert np.abs(np.asarray(got) - want).max() < 2e-4 * np.abs(want).max(), path


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "deepseek_v3"])
def test_an_adapter_with_a_head_goes_to_peft_and_comes_back(family, tmp_path):
    made(family, tmp_path / "base")
    model = models.load(tmp_path / "base")
    frozen, lora, config = adapted(model, train="classifier")
    expected = jax.jit(model.classifier)(jlora.merge(frozen, lora), INPUTS)
    jlora.peft.save(tmp_path / "ours", lora, config, model)
    settings = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("SEQ_CLS", ["score"])
    base = AUTO.from_pretrained(tmp_path / "base", **EAGER)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    assert_near(expected, scores_of(theirs), 1e-4)

    torch.manual_seed(11)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    again, _ = jlora.peft.load(tmp_path / "theirs", model)
    assert "classifier/kernel" in again
    merged = jlora.merge(model.params, again)
    assert_near(jax.jit(model.classifier)(merged, INPUTS), scores_of(theirs), 1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_fresh_head_is_exported_with_its_labels(family, tmp_path):
    _, settings = settings_of(family)
    config = transformers.AutoConfig.for_model(family, **settings)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, **EAGER).save_pretrained(
        tmp_path / "base"
    )
    save_tokenizer(tmp_path / "base")
    base = models.load(tmp_path / "base")
    model = models.with_classifier(base, LABELS, jax.random.key(2))
    frozen, lora, _ = adapted(model, train=models.fresh_leaves(base, model))
    out = models.export(tmp_path / "base", tmp_path / "out", lora=lora, labels=LABELS)
    again, loading = AUTO.from_pretrained(out, output_loading_info=True, **EAGER)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert tuple(again.config.id2label.values()) == LABELS
    expected = jax.jit(model.classifier)(jlora.merge(frozen, lora), INPUTS)
    again.config.get_text_config().pad_token_id = 0
    assert_near(expected, scores_of(again.eval()), 1e-4)
    assert not any("lm_head" in name for name in load_file(out / "model.safetensors"))
    loaded = models.load(out)
    assert_near(jax.jit(loaded.classifier)(loaded.params, INPUTS), np.asarray(expected), 1e-5)
