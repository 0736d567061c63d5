"""Small random encoders against transformers on torch, and their adapters against PEFT."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers, processors

import jlora
from jlora import models
from jlora.models._families import ENCODERS
from jlora.models._files._torch_tensors import oriented

SIZES = {
    "vocab_size": 83,
    "hidden_size": 42,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 29,
    "type_vocab_size": 3,
}
LABELS = {"id2label": {at: f"kind {at}" for at in range(5)}}
CLASSES = {"bert": "Bert", "roberta": "Roberta"}
PADDING = {"bert": 0, "roberta": 4}
each_family = pytest.mark.parametrize("family", ENCODERS)


def class_of(family, head):
    return getattr(transformers, f"{CLASSES[family]}{head}")


def made(family, head="Model", **settings):
    """A random model of transformers in which no parameter has its usual value."""
    config = class_of(family, "Config")(
        **{**SIZES, **LABELS, "pad_token_id": PADDING[family], **settings},
        attn_implementation="eager",
    )
    torch.manual_seed(5)
    model = class_of(family, head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def written(model, folder):
    """The model's folder, with a WordPiece tokenizer that frames texts as BERT does."""
    model.save_pretrained(folder)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##do", "##ne", "well", "good", "bad"]
    words = {name: at for at, name in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.enable_padding(length=20)  # as files of sentence models have it
    backend.enable_truncation(max_length=6)
    backend.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    return folder


def batch(family, length=13):
    """Tokens with padding behind, whose mask and types are none of the usual ones."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 83, (4, length)).astype(np.int32)
    mask, types = np.ones_like(tokens), rng.integers(0, 3, tokens.shape).astype(np.int32)
    for row, end in enumerate((13, 7, 1, 10)):
        tokens[row, end:], mask[row, end:] = PADDING[family], 0
    return {"tokens": tokens, "mask": mask, "types": types}


def in_torch(inputs):
    names = {"tokens": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    return {names[name]: torch.tensor(array).long() for name, array in inputs.items()}


def close(ours, theirs, atol=2e-5):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-4)


@each_family
def test_hidden_states_and_the_pooled_output_are_those_of_transformers(family, tmp_path):
    theirs = made(family)
    model = models.load(written(theirs, tmp_path))
    inputs = batch(family)
    assert isinstance(model, models.EncoderModel)
    assert model.config.pooler and not model.config.labels
    hidden = model.hidden(model.params, **inputs)
    expected = theirs(**in_torch(inputs))
    seen = inputs["mask"].astype(bool)
    close(hidden[seen], expected.last_hidden_state[torch.tensor(seen)])
    close(model.pooled(model.params, hidden), expected.pooler_output)
    close(model.apply(model.params, **inputs)[seen], hidden[seen])
    alone = {"tokens": inputs["tokens"]}
    close(
        model.hidden(model.params, **alone),
        theirs(
            input_ids=torch.tensor(alone["tokens"]).long(), attention_mask=torch.ones(4, 13).long()
        ).last_hidden_state,
    )


@each_family
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_scores_are_those_of_transformers(family, activation, tmp_path):
    theirs = made(family, "ForSequenceClassification", hidden_act=activation, layer_norm_eps=0.03)
    model = models.load(written(theirs, tmp_path))
    assert model.config.labels == tuple(LABELS["id2label"].values())
    inputs = batch(family)
    scores = model.apply(model.params, **inputs)
    assert scores.shape == (4, 5) and scores.dtype == jnp.float32
    close(scores, theirs(**in_torch(inputs)).logits)
    hidden = model.hidden(model.params, **inputs)
    close(model.logits(model.params, hidden), scores)


def parameter_of(model, theirs, path, layer):
    """Ours of a leaf's layer, out of a gradient of the module in torch."""
    stored = model.stored[path]
    module = dict(theirs.named_parameters())[stored.name.format(layer)]
    return oriented(stored, module.grad.numpy())


@each_family
@pytest.mark.parametrize("remat", [False, True])
def test_gradients_of_adapters_are_those_of_transformers(family, remat, tmp_path):
    """dL/dA = s dL/dW B^T and dL/dB = s A^T dL/dW, with the weights merged in torch."""
    theirs = made(family, "ForSequenceClassification")
    model = models.load(written(theirs, tmp_path))
    inputs, labels = batch(family), np.array([3, 0, 4, 1])
    config = jlora.LoraConfig(targets="all-linear", rank=3, alpha=7)
    axes = jlora.trace_axes(model.apply, model.params, inputs["tokens"])
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    expected = {
        f"layers/{p}/kernel"
        for p in (*(f"attn/{n}_proj" for n in "qkvo"), "mlp/up_proj", "mlp/down_proj")
    }
    expected |= {"classifier/dense/kernel" if family == "roberta" else "pooler/kernel"}
    assert lora.keys() == expected
    keys = iter(jax.random.split(jax.random.key(1), len(lora)))
    lora = {
        path: node.replace(b=jax.random.normal(next(keys), node.b.shape) * 0.1)
        if hasattr(node, "replace")
        else __import__("dataclasses").replace(
            node, b=jax.random.normal(next(keys), node.b.shape) * 0.1
        )
        for path, node in lora.items()
    }
    merged = jlora.merge(frozen, lora)
    stored, flat = model.stored, {}
    import flax.traverse_util

    values = flax.traverse_util.flatten_dict(merged, sep="/")
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for path in lora:
            stack = values[path] if path.startswith("layers/") else values[path][None]
            for layer, value in enumerate(stack):
                tensor = np.array(oriented(stored[path], np.asarray(value)))
                parameters[stored[path].name.format(layer)].copy_(torch.tensor(tensor))

    def loss(frozen, lora):
        scores = jlora.lift(model.apply)(frozen, lora, *inputs.values(), remat=remat)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1)
        return -chosen.mean()

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=1))(frozen, lora)
    result = theirs(**in_torch(inputs), labels=torch.tensor(labels))
    result.loss.backward()
    close(value, result.loss)
    for path, node in lora.items():
        stacked = path.startswith("layers/")
        for layer in range(3 if stacked else 1):
            whole = parameter_of(model, theirs, path, layer)
            a, b, scaling = (
                np.asarray(x[layer] if stacked and x.ndim > 1 else x)
                for x in (node.a, node.b, node.scaling)
            )
            ours = gradients[path]
            of_a, of_b = (ours.a[layer], ours.b[layer]) if stacked else (ours.a, ours.b)
            close(of_a, scaling * whole @ b.T)
            close(of_b, scaling * a.T @ whole)
