"""Encoders without the oracle: what they see, what they refuse, fresh heads, what info says."""

import json
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import pre_tokenizers, processors

import jlora
from jlora import models
from jlora.__main__ import main
from jlora.models._families import ENCODERS
from train import main as train

SIZES = {
    "vocab_size": 11,
    "hidden_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "max_position_embeddings": 9,
    "pad_token_id": 0,
}
FILE = "adapter_model.safetensors"
LABELS = {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"1": "yes", "0": "no", "2": "maybe"},
}


def saved(folder, **settings):
    """A folder of a random BERT."""
    settings = {"model_type": "bert", **SIZES, **settings}
    config, tensors = models.from_huggingface(settings, "config.json"), {}
    rng = np.random.default_rng(2)
    shapes = models.expected_shapes(config)
    params = flax.traverse_util.unflatten_dict(shapes, sep="/")
    stored = models.EncoderModel(params, config, tokenizer=None, name="tiny").stored
    for path, shape in shapes.items():
        value = rng.normal(0, 0.5, shape).astype(np.float32)
        for layer, each in enumerate(value if path.startswith("layers/") else [value]):
            tensors |= models.to_stored(stored[path], layer, each)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b", "c"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("encoder"), **LABELS)


@pytest.fixture(scope="module")
def model(folder):
    return models.load(folder)


def test_texts_become_tokens_with_their_frame_and_types(model):
    inputs = model.inputs([("ab c", "c"), "c"])
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "tokens": [[2, 4, 5, 6, 3, 6, 3], [2, 6, 3, 0, 0, 0, 0]],
        "mask": [[1] * 7, [1, 1, 1, 0, 0, 0, 0]],
        "types": [[0, 0, 0, 0, 0, 1, 1], [0] * 7],
    }
    assert model.inputs([("ab c", "c")], max_length=5)["tokens"].tolist() == [[2, 4, 3, 6, 3]]


def test_a_text_that_is_too_long_says_which_one_and_what_to_do(model):
    with pytest.raises(ValueError, match=r"text 1 is 12 tokens long.*9 positions.*max_length=9"):
        model.inputs(["a", "a " * 10])
    with pytest.raises(ValueError, match=r"max_length is 4.*takes 3 tokens"):
        model.inputs([("a", "c")], max_length=4)
    with pytest.raises(ValueError, match="10 tokens are longer than the 9 positions"):
        model.apply(model.params, jnp.zeros((1, 10), int))


def test_what_the_mask_hides_changes_nothing_and_all_else_does(model):
    inputs = model.inputs(["ab c", "c ab c"])
    apply = jax.jit(model.apply)
    scores = apply(model.params, **inputs)
    other = {**inputs, "tokens": np.where(inputs["mask"] == 0, 7, inputs["tokens"])}
    np.testing.assert_array_equal(scores, apply(model.params, **other))
    last = inputs["tokens"].copy()
    last[:, 3] = 8  # is seen from the first token, which is what is read
    moved = apply(model.params, **{**inputs, "tokens": last})
    assert np.abs(moved - scores).min() > 1e-4


def test_half_precision_gives_hidden_states_of_its_own_and_float32_scores(model):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    tokens = jnp.ones((1, 3), int)
    hidden = jax.eval_shape(model.hidden, half, tokens)
    assert (hidden.shape, hidden.dtype) == ((1, 3, 14), jnp.bfloat16)
    scores = jax.eval_shape(model.apply, half, tokens)
    assert (scores.shape, scores.dtype) == ((1, 3), jnp.float32)


def test_roberta_counts_positions_behind_its_padding(tmp_path):
    config = models.from_huggingface(
        {"model_type": "roberta", **SIZES, "pad_token_id": 5, "num_hidden_layers": 1}, "here"
    )
    assert (config.longest, config.padding) == (3, 5)
    encoder = models.Encoder(config)
    tokens = jnp.array([[1, 5, 2]])
    params = jax.jit(encoder.init)(jax.random.key(0), tokens)["params"]

    def moved(params):
        return encoder.apply({"params": params}, tokens, method="hidden").sum() ** 2

    rows = np.abs(jax.jit(jax.grad(moved))(params)["positions"]["embedding"]).max(1)
    assert np.flatnonzero(rows).tolist() == [5, 6, 7]


def test_labels_are_read_in_the_order_of_their_numbers(model):
    assert model.config.labels == ("no", "yes", "maybe")
    assert models.from_huggingface(models.to_huggingface(model.config), "again") == model.config
    with pytest.raises(ValueError, match="id2label"):
        models.from_huggingface(
            {"model_type": "bert", **SIZES, **LABELS, "id2label": {"0": "a", "2": "b"}}, "here"
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"is_decoder": True}, "is_decoder is True, but only False is supported"),
        ({"position_embedding_type": "relative_key"}, "but only 'absolute' is supported"),
        ({"hidden_size": 15}, "width is 15: expected a multiple of its 2 heads"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"type_vocab_size": 0}, "types is 0: expected at least 1"),
        ({"model_type": "roberta", "pad_token_id": -1}, "padding is -1"),
        ({"model_type": "roberta", "pad_token_id": 8}, "expected more than the 9"),
        ({"rope_theta": 3.0}, "does not know this setting of a bert model"),
    ],
)
def test_what_no_encoder_has_is_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        models.from_huggingface({"model_type": "bert", **SIZES, **settings}, "here")


def test_what_only_a_decoder_does_is_one_error(model, folder, tmp_path, capsys):
    told = re.escape(f"{folder} is an encoder (bert), and only a decoder ")
    asked = [{"role": "user", "content": "a"}]
    tokens = jnp.ones((1, 3), int)
    with pytest.raises(ValueError, match=f"{told}writes answers"):
        models.answer(model, [asked])
    with pytest.raises(ValueError, match=f"{told}writes answers"):
        models.stream(model, asked)
    with pytest.raises(ValueError, match=f"{told}learns answers"):
        models.answer_loss(model, model.params, {"tokens": tokens})
    assert main(["generate", "--model", str(folder), "--prompt", "a"]) == 2
    assert "only a decoder writes answers" in capsys.readouterr().err
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "a {at}", "completion": "c"}}\n' for at in range(30)))
    assert train(["--model", str(folder), "--data", str(rows), "--out", str(tmp_path / "o")]) == 2
    assert "is an encoder (bert), which writes no answers" in capsys.readouterr().err
    with pytest.raises(ValueError, match="sees all others: use attention='blocks'"):
        models.load(folder, attention="xla")


def test_a_model_without_head_or_pooler_says_so(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not n.startswith(("bert.pooler", "classifier"))}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="reads the pooler, and there is none"):
        models.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **SIZES}))
    model = models.load(tmp_path)
    hidden = model.hidden(model.params, jnp.ones((1, 3), int))
    with pytest.raises(ValueError, match=r"no head.*with_classifier"):
        model.logits(model.params, hidden)
    with pytest.raises(ValueError, match="no pooler"):
        model.pooled(model.params, hidden)


def test_a_folder_with_the_older_form_of_a_tokenizer_says_what_to_do(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").rename(tmp_path / "vocab.txt")
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing\..*save_pretrained"):
        models.load(tmp_path)


def test_a_fresh_head_leaves_the_encoder_and_depends_on_the_key_alone(model):
    labels = ("a", "b", "c", "d")
    fresh = models.with_classifier(model, labels, jax.random.key(3))
    assert fresh.config.labels == labels
    head = fresh.params["classifier"]["out_proj"]
    assert head["kernel"].shape == (14, 4)
    assert 0.01 < np.std(head["kernel"]) < 0.03
    assert not np.any(head["bias"])
    again = models.with_classifier(model, labels, jax.random.key(3)).params["classifier"]
    np.testing.assert_array_equal(again["out_proj"]["kernel"], head["kernel"])
    other = models.with_classifier(model, labels, jax.random.key(4)).params["classifier"]
    assert np.any(other["out_proj"]["kernel"] != head["kernel"])
    tokens = jnp.array([[2, 6, 3]])
    np.testing.assert_array_equal(
        fresh.hidden(fresh.params, tokens), model.hidden(model.params, tokens)
    )
    for wrong in ((), "yes", ("a", "a")):
        with pytest.raises(ValueError, match="labels are"):
            models.with_classifier(model, wrong, jax.random.key(3))


def test_an_outline_gets_the_shapes_of_a_fresh_head(folder):
    shapes = models.with_classifier(models.outline(folder), ("a",), jax.random.key(0)).params
    assert shapes["classifier"]["out_proj"]["kernel"] == jax.ShapeDtypeStruct((14, 1), "float32")


def test_adapters_over_the_model_equal_the_merged_one(model):
    inputs = model.inputs(["ab c", ("c", "ab")])
    config = jlora.LoraConfig(targets="kernel|embed/", exclude="classifier",
                              rank=2, alpha=5, train="classifier", init="orthogonal")  # fmt: skip
    axes = jlora.trace_axes(model.apply, model.params, inputs["tokens"])
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = jax.tree.map(lambda x: x + 0.1, lora)
    lifted = jax.jit(jlora.lift(model.apply, strict=True))(frozen, lora, **inputs)
    apply = jax.jit(model.apply)
    merged = apply(jlora.merge(frozen, lora), **inputs)
    np.testing.assert_allclose(lifted, merged, atol=1e-5)
    assert np.abs(merged - apply(model.params, **inputs)).max() > 1e-3


def test_a_head_of_which_something_trains_is_saved_whole(tmp_path):
    config = models.EncoderConfig(
        vocabulary=11, width=14, layers=1, heads=2, mlp_width=10, max_length=9, family="roberta",
        own_dense=True, pooler=False, labels=("no", "yes", "so"),
    )  # fmt: skip
    tokens = jnp.ones((1, 2), int)
    params = jax.jit(models.Encoder(config).init)(jax.random.key(0), tokens)["params"]
    model = models.EncoderModel(params, config, tokenizer=None, name="tiny")
    biases = jlora.LoraConfig(targets="q_proj/kernel", bias="all", rank=2)
    axes = jlora.trace_axes(model.apply, params, tokens)
    _, lora = jlora.split(params, biases, jax.random.key(0), axes=axes)
    assert "classifier/dense/bias" in lora
    assert "classifier/dense/kernel" not in lora
    jlora.peft.save(tmp_path, lora, biases, model)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["modules_to_save"], settings["bias"]) == (["classifier"], "all")
    names = {name.partition(".classifier.")[2] for name in load_file(tmp_path / FILE)} - {""}
    assert names == {"dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"}
    again, _ = jlora.peft.load(tmp_path, model)
    np.testing.assert_array_equal(
        again["classifier/dense/kernel"].value, params["classifier"]["dense"]["kernel"]
    )


def test_a_published_adapter_says_what_it_is_for_and_mlx_has_none(model, tmp_path):
    config = jlora.LoraConfig(targets="q_proj/kernel", train="classifier", rank=2)
    axes = jlora.trace_axes(model.apply, model.params, jnp.ones((1, 2), int))
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    jlora.peft.publish(tmp_path / "peft", lora, config, model)
    assert 'pipeline_tag: "text-classification"' in (tmp_path / "peft" / "README.md").read_text()
    with pytest.raises(ValueError, match="mlx-lm adapts language models alone"):
        jlora.peft.publish(tmp_path / "mlx", lora, config, model, format="mlx")


def test_info_says_what_it_is_and_what_all_linear_adapts(folder, capsys):
    assert main(["info", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "kind   bert, an encoder\n" in told
    assert "3 layers of width 14, 11 tokens, 9 positions, a head with 3 labels: no, yes, maybe" in (
        " ".join(told.split())
    )
    assert "template" not in told
    assert re.findall(r"^(\S+/kernel)", told, re.MULTILINE) == [
        *(f"layers/attn/{name}_proj/kernel" for name in "koqv"),
        *("layers/mlp/down_proj/kernel", "layers/mlp/up_proj/kernel", "pooler/kernel"),
    ]


@pytest.mark.parametrize("family", ENCODERS)
def test_the_tree_has_the_paths_of_the_table(family):
    settings = {
        **{"model_type": family, **SIZES},
        "architectures": [f"{family.title()}ForSequenceClassification"],
    }
    paths = models.expected_shapes(models.from_huggingface(settings, "here"))
    assert paths.keys() == ENCODERS[family].leaves.keys()
    assert paths["layers/mlp/up_proj/kernel"] == (3, 14, 10)
    assert paths["types/embedding"] == (2, 14)
