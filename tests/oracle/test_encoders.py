"""Small random encoders against transformers on torch: outputs, gradients, files and texts."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from encoders import LABELS, batch, class_of, close, each_family, in_torch, made, written
from safetensors.numpy import load_file, save_file

import jlora
from jlora import checkpoint, models
from jlora.models._families import ENCODERS, from_huggingface
from jlora.models._files._torch_tensors import oriented


@each_family
def test_hidden_states_and_the_pooled_output_are_those_of_transformers(family, tmp_path):
    theirs = made(family)
    model = models.load(written(theirs, tmp_path))
    inputs = batch(family)
    assert isinstance(model, models.EncoderModel)
    assert (model.config.pooler, model.config.labels) == (True, ())
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
    assert (scores.shape, scores.dtype) == ((4, 5), jnp.float32)
    close(scores, theirs(**in_torch(inputs)).logits)
    hidden = model.hidden(model.params, **inputs)
    close(model.logits(model.params, hidden), scores)


def with_b(lora):
    """The adapter with another B than zero."""
    keys = jax.random.split(jax.random.key(1), len(lora))
    return {
        path: dataclasses.replace(node, b=0.1 * jax.random.normal(key, node.b.shape))
        for key, (path, node) in zip(keys, lora.items(), strict=True)
    }


def layers_of(path, value):
    return list(value) if path.startswith("layers/") else [value]


LINEAR = {
    *(f"layers/attn/{name}_proj/kernel" for name in "qkvo"),
    *(f"layers/mlp/{name}_proj/kernel" for name in ("up", "down")),
}
FRESH = ("no", "yes", "maybe")
OF_THE_HEAD = {"bert": {"pooler/kernel"}, "roberta": {"classifier/dense/kernel"}}


@each_family
@pytest.mark.parametrize("remat", models.REMATS)
def test_gradients_of_adapters_are_those_of_transformers(family, remat, tmp_path):
    """dL/dA = s dL/dW B^T and dL/dB = s A^T dL/dW, with the weights merged in torch."""
    theirs = made(family, "ForSequenceClassification")
    model = models.load(written(theirs, tmp_path))
    inputs, labels = batch(family), np.array([3, 0, 4, 1])
    config = jlora.LoraConfig(targets="all-linear", rank=3, alpha=7)
    axes = jlora.trace_axes(model.apply, model.params, inputs["tokens"])
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    assert lora.keys() == LINEAR | OF_THE_HEAD[family]
    lora = with_b(lora)
    merged = flax.traverse_util.flatten_dict(jlora.merge(frozen, lora), sep="/")
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for path in lora:
            for layer, value in enumerate(layers_of(path, np.asarray(merged[path]))):
                tensor = torch.tensor(np.array(oriented(model.stored[path], value)))
                parameters[model.names[path].format(layer)].copy_(tensor)

    def loss(lora):
        scores = jlora.lift(model.apply)(frozen, lora, *inputs.values(), remat=remat)
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(lora)
    result = theirs(**in_torch(inputs), labels=torch.tensor(labels))
    result.loss.backward()
    close(value, result.loss)
    for path, node in lora.items():
        its = (node.a, node.b, gradients[path].a, gradients[path].b)
        each = zip(*(layers_of(path, np.asarray(x)) for x in its), strict=True)
        for layer, (a, b, of_a, of_b) in enumerate(each):
            gradient = parameters[model.names[path].format(layer)].grad.numpy()
            whole = 7 / 3 * oriented(model.stored[path], gradient)
            assert np.abs(whole).max() > 1e-6
            close(of_a, whole @ b.T)
            close(of_b, a.T @ whole)


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize(
    ("head", "pooler"),
    [("ForMaskedLM", False), ("ForTokenClassification", False), ("ForMultipleChoice", True)],
)
def test_a_folder_with_another_head_loads_its_encoder(family, head, pooler, tmp_path):
    theirs = made(family, head)
    folder = written(theirs, tmp_path)
    count = len({name for name in load_file(folder / "model.safetensors")
                 if not name.startswith(f"{family}.")})  # fmt: skip
    with pytest.warns(UserWarning, match="left aside, as no part of the encoder") as told:
        model = models.load(folder)
    assert len(told) == 1
    assert f"({count} tensors)" in str(told[0].message)
    assert (model.config.labels, model.config.pooler) == ((), pooler)
    inputs = batch(family)
    hidden = model.hidden(model.params, **inputs)
    seen = inputs["mask"].astype(bool)
    expected = getattr(theirs, family)(**in_torch(inputs)).last_hidden_state
    close(hidden[seen], expected[torch.tensor(seen)])


@each_family
def test_names_of_older_releases_and_of_wrappers_are_known(family, tmp_path):
    folder = written(made(family, "ForSequenceClassification"), tmp_path)
    new = models.load(folder)
    tensors = load_file(folder / "model.safetensors")
    older = {
        "module."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert len(older.keys() & tensors.keys()) == 0
    older[f"{family}.embeddings.position_ids"] = np.arange(29)[None]
    save_file(older, folder / "model.safetensors")
    again = models.load(folder)
    assert again.config == new.config
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, new.params))


@each_family
@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification", "ForMaskedLM"])
@pytest.mark.filterwarnings("ignore:.*left aside")
def test_an_exported_folder_opens_in_transformers(family, head, tmp_path):
    theirs = made(family, head)
    folder = written(theirs, tmp_path / "model")
    model = models.load(folder)
    config = jlora.LoraConfig(targets="attn/(q|o)_proj|mlp", rank=3, alpha=7)
    axes = jlora.trace_axes(model.apply, model.params, batch(family)["tokens"])
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = with_b(lora)
    out = models.export(folder, tmp_path / "merged", lora=lora)
    again, loading = class_of(family, head).from_pretrained(
        out, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
    inputs = batch(family)
    encoder = again if head == "Model" else getattr(again, family)
    hidden = model.hidden(jlora.merge(frozen, lora), **inputs)
    seen = inputs["mask"].astype(bool)
    close(hidden[seen], encoder(**in_torch(inputs)).last_hidden_state[torch.tensor(seen)])
    of_head = {n: p for n, p in theirs.named_parameters() if not n.startswith(f"{family}.")}
    if head != "Model":
        now = dict(again.named_parameters())
        assert all(torch.equal(now[name], value) for name, value in of_head.items())


# A model of transformers, and how it is made.
WITHOUT_THE_HEAD = {
    "no pooler": ("Model", {"add_pooling_layer": False}),
    "a pooler": ("Model", {}),
    "a vocabulary's head": ("ForMaskedLM", {}),
    "a head over tokens": ("ForTokenClassification", {}),
    "other labels": ("ForSequenceClassification", {}),
}


@each_family
@pytest.mark.parametrize("base", WITHOUT_THE_HEAD)
@pytest.mark.filterwarnings("ignore:.*left aside")
def test_an_exported_fresh_head_opens_in_transformers(family, base, tmp_path):
    head, options = WITHOUT_THE_HEAD[base]
    folder = written(made(family, head, options=options), tmp_path / "model")
    before = models.load(folder)
    model = models.with_classifier(before, FRESH, jax.random.key(2))
    inputs = batch(family)
    config = jlora.LoraConfig(
        targets="attn/(q|o)_proj", train=models.fresh_leaves(before, model), rank=3, alpha=7
    )
    axes = jlora.trace_axes(model.apply, model.params, inputs["tokens"])
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = jax.tree.map(lambda leaf: leaf + 0.1, lora)
    base = checkpoint.fingerprint(model.params)
    out = models.export(folder, tmp_path / "merged", lora=lora, base=base, labels=FRESH)
    again, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        out, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert tuple(again.config.id2label.values()) == FRESH
    scores = model.apply(jlora.merge(frozen, lora), **inputs)
    close(scores, again.eval()(**in_torch(inputs)).logits)
    loaded = models.load(out)
    close(loaded.apply(loaded.params, **inputs), scores)


@each_family
def test_settings_are_those_that_transformers_reads(family):
    labels = {"architectures": [f"{family.title()}ForSequenceClassification"], **LABELS}
    for given in ({}, labels):
        config = made(family).config
        settings = {**config.to_dict(), **given}
        # pad_token_id says nothing of BERT
        ours = from_huggingface(settings, "all")
        assert from_huggingface({**config.to_diff_dict(), **given}, "those that differ") == ours
        assert len(ours.labels) == (5 if given else 0)
        again = transformers.AutoConfig.for_model(**models.to_huggingface(ours))
        for name in ("hidden_act", "layer_norm_eps", "pad_token_id", "num_labels", "vocab_size"):
            if name != "pad_token_id" or family == "roberta":
                wanted = 2 if name == "num_labels" and not given else getattr(config, name)
                assert getattr(again, name) == wanted, name


@each_family
def test_every_setting_that_transformers_writes_is_known(family):
    config = transformers.CONFIG_MAPPING[family]()
    whole = from_huggingface(config.to_dict(), "all settings")
    assert (
        from_huggingface(
            config.to_diff_dict()
            | {
                name: getattr(config, name)
                for name in (
                    "vocab_size",
                    "hidden_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "intermediate_size",
                    "max_position_embeddings",
                )
            },
            "those that differ",
        )
        == whole
    )
    defaults = ENCODERS[family].defaults
    assert defaults == {name: getattr(config, name) for name in defaults}


# ------------------------------------------------------------------------------------------------
# Texts
# ------------------------------------------------------------------------------------------------

TEXTS = ["well", "undone good bad good bad", ("good", "bad undone"), ("undone undone", "good"), ""]


@pytest.mark.parametrize("max_length", [None, 5, 6, 7])
def test_texts_and_pairs_are_framed_as_transformers_frames_them(max_length, tmp_path):
    folder = written(made("bert"), tmp_path)
    model = models.load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = model.inputs(TEXTS, max_length=max_length)
    for at, text in enumerate(TEXTS):
        pair = (text,) if isinstance(text, str) else text
        expected = theirs(*pair, truncation=max_length is not None, max_length=max_length,
                          padding=False, return_token_type_ids=True)  # fmt: skip
        length = len(expected["input_ids"])
        assert ours["tokens"][at].tolist()[:length] == expected["input_ids"]
        assert ours["types"][at].tolist()[:length] == expected["token_type_ids"]
        assert ours["mask"][at].tolist() == [1] * length + [0] * (ours["mask"].shape[1] - length)
        assert set(ours["tokens"][at].tolist()[length:]) <= {0}
