"""Heads for classification: what they read, what they learn from, files, and clear errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jlora
import jlora.checkpoint
from jlora import data, models
from jlora.__main__ import main

LABELS = ("no", "yes", "so")
TEXTS = ["a b", "abc abc a", ("a", "b a"), "c"]
ROWS = [
    {"text": "a b", "label": "yes"},
    {"text": "abc abc a", "label": "no"},
    {"text": "a", "second": "b a", "label": "so"},
    {"text": "c", "label": 1},
]


@pytest.fixture(scope="module")
def base(tiny):
    return models.load(tiny)


@pytest.fixture(scope="module")
def model(base):
    return models.with_classifier(base, LABELS, jax.random.key(2))


def adapted(base, model):
    """(frozen, lora, config): a head and an adapter that are not as they start."""
    fresh = models.fresh_leaves(base, model)
    config = jlora.LoraConfig(targets="q_proj/kernel", train=fresh, rank=2)
    axes = jlora.trace_axes(model.apply, model.params, jnp.ones((1, 3), int))
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    return frozen, jax.tree.map(lambda x: x + 0.1 if x.ndim else x, lora), config


def test_a_decoder_scores_the_last_token_that_the_mask_shows(model):
    inputs = model.inputs(TEXTS)
    apply = jax.jit(model.classifier)
    scores = apply(model.params, inputs)
    assert (scores.shape, scores.dtype) == ((4, 3), jnp.float32)
    hidden = model.hidden(model.params, inputs["tokens"])
    last = hidden[jnp.arange(4), inputs["mask"].sum(1) - 1]
    expected = last @ model.params["classifier"]["kernel"]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(model.logits(model.params, last), expected, atol=1e-6)
    hides = {**inputs, "tokens": np.where(inputs["mask"] == 0, 7, inputs["tokens"])}
    np.testing.assert_allclose(apply(model.params, hides), scores, atol=1e-6)
    whole = {"tokens": inputs["tokens"][1:2]}
    np.testing.assert_allclose(apply(model.params, whole), scores[1:2], atol=1e-6)


def test_a_fresh_head_takes_the_place_of_the_one_over_the_vocabulary(make_llama, tmp_path):
    base = models.load(make_llama(tmp_path / "untied", tied=False))
    model = models.with_classifier(base, LABELS, jax.random.key(2))
    assert "head" in base.params
    assert "head" not in model.params
    assert model.params["classifier"]["kernel"].shape == (24, 3)
    assert model.names["classifier/kernel"] == "score.weight"
    assert models.fresh_leaves(base, model) == ("^classifier/kernel$",)
    assert models.from_huggingface(models.to_huggingface(model.config), "again") == model.config
    again = models.with_classifier(model, ("a", "b"), jax.random.key(2))
    assert again.params["classifier"]["kernel"].shape == (24, 2)


def test_what_writes_and_what_scores_say_so(base, model):
    asked = [[{"role": "user", "content": "a"}]]
    with pytest.raises(ValueError, match="only one over the vocabulary writes answers"):
        models.answer(model, asked)
    with pytest.raises(ValueError, match="only one over the vocabulary writes tokens"):
        model.generate(model.params, jnp.ones((1, 3), int), jnp.zeros(1, int), max_new_tokens=2)
    with pytest.raises(ValueError, match="only one over the vocabulary learns answers"):
        models.answer_loss(model, model.params, {"tokens": jnp.ones((1, 3), int)})
    for wrong in (
        lambda: base.classifier(base.params, base.inputs(["a"])),
        lambda: models.classify(base, ["a"]),
    ):
        with pytest.raises(ValueError, match=r"no head for classification.*with_classifier"):
            wrong()
    with pytest.raises(ValueError, match="text 1 is empty"):
        model.inputs(["a", ""])
    granite = models.DecoderConfig(
        vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        max_length=64, family="granite",
    )  # fmt: skip
    bare = models.Model(models.expected_shapes(granite), granite, tokenizer=None, name="tiny")
    with pytest.raises(ValueError, match="transformers has no class"):
        models.with_classifier(bare, LABELS, jax.random.key(0))


# ------------------------------------------------------------------------------------------------
# Learning and measuring
# ------------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_rows_that_count(model):
    inputs = model.inputs(TEXTS)
    labels, weights = np.array([1, 0, 2, 1]), np.array([1.0, 0.0, 1.0, 1.0])
    total, count = models.classification_loss(
        model, model.params, {**inputs, "labels": labels, "weights": weights}
    )
    scores = np.asarray(model.classifier(model.params, inputs), np.float64)
    each = np.log(np.exp(scores).sum(1)) - scores[np.arange(4), labels]
    np.testing.assert_allclose(total, each @ weights, rtol=1e-5)
    assert count == 3
    _, all_count = models.classification_loss(model, model.params, {**inputs, "labels": labels})
    assert all_count == 4


def test_a_head_with_an_adapter_learns_what_rows_say(base, model):
    examples, _ = data.encode_labelled(ROWS, model.tokenizer, labels=LABELS, max_length=16)
    batches = data.LabelledBatches(examples, batch_size=2, seed=1)
    frozen, lora, _ = adapted(base, model)
    lifted = jlora.lift(lambda p, b: models.classification_loss(model, p, b))

    @jax.jit
    def step(lora, batch):
        def mean(lora):
            total, count = lifted(frozen, lora, batch)
            return total / count

        return jax.tree.map(lambda x, g: x - 0.3 * g if x.ndim else x, lora, jax.grad(mean)(lora))

    for number in range(40):
        lora = step(lora, batches(number))
    shares = models.classify(model, TEXTS, frozen, lora, batch_size=3)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert shares.argmax(1).tolist() == [1, 0, 2, 1]
    one_by_one = [models.classify(model, [text], frozen, lora)[0] for text in TEXTS]
    np.testing.assert_allclose(shares, one_by_one, atol=1e-5)
    merged = models.classify(model, TEXTS, jlora.merge(frozen, lora))
    np.testing.assert_allclose(shares, merged, atol=1e-5)


def test_accuracy_and_macro_f1_by_hand():
    labels, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 3, 0]
    assert models.accuracy(labels, predicted) == 3 / 6
    # 0: TP 2, FP 1, FN 1; 1: TP 1, FP 1, FN 1; 2: TP 0; 3: TP 0, though it is nobody's label
    assert models.macro_f1(labels, predicted) == pytest.approx((4 / 6 + 2 / 4 + 0 + 0) / 4)
    assert models.macro_f1([3, 1], [3, 1]) == 1
    for wrong in (([], []), ([1], [1, 2]), ([[1]], [[1]])):
        with pytest.raises(ValueError, match="expected a number for each row"):
            models.accuracy(*wrong)


# ------------------------------------------------------------------------------------------------
# Rows
# ------------------------------------------------------------------------------------------------


def test_rows_become_tokens_types_and_numbers(model):
    examples, report = data.encode_labelled(ROWS, model.tokenizer, labels=LABELS, max_length=5)
    assert [example.label for example in examples] == [1, 0, 2, 1]
    assert [len(example.tokens) for example in examples] == [3, 5, 3, 1]
    assert examples[2].types == [0, 1, 1]
    assert str(report) == "4 rows (no: 1, yes: 2, so: 1), 1 longer than 5 tokens and cut"
    batches = data.LabelledBatches(examples, batch_size=3, shapes=2, shuffle=False)
    seen = sorted(row for step in range(batches.per_epoch) for row in batches.rows(step))
    assert seen == [0, 1, 2, 3]
    for step in range(batches.per_epoch):
        batch, rows = batches(step), batches.rows(step)
        assert batch["weights"].tolist() == [1] * len(rows) + [0] * (3 - len(rows))
        assert batch["labels"][: len(rows)].tolist() == [examples[row].label for row in rows]
        lengths = [len(examples[row].tokens) for row in rows]
        assert batch["mask"].sum(1).tolist() == lengths + [0] * (3 - len(rows))
        assert batches.tokens(step) == sum(lengths)


def test_labels_have_names_and_an_order():
    def of(*labels):
        return data.labels_of([{"text": "a", "label": label} for label in labels])

    assert of("pos", "neg", "pos") == ("neg", "pos")
    assert of(10, 9, 10.0) == ("9", "10")
    assert of(True, False) == ("false", "true")
    with pytest.raises(ValueError, match=r"every row has the label pos.*at least two"):
        of("pos", "pos")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "label": "maybe"}, "row 2: the label 'maybe' is none of no, yes, so"),
        ({"text": "a", "label": 3}, "row 2: the label 3 is none of"),
        ({"label": "no"}, "row 2: 'text' is missing (found ['label'])"),
        ({"text": " ", "label": "no"}, "row 2: 'text' is empty"),
        ({"text": "a", "second": 3, "label": "no"}, "row 2: 'second' is a number, not text"),
        ({"text": "a"}, "row 2: 'label' is missing (found ['text'])"),
        ({"text": "a", "label": ["no"]}, "row 2: 'label' is a list"),
    ],
)
def test_a_row_that_can_t_be_used_is_named(model, row, said):
    with pytest.raises(ValueError, match="can't be used") as error:
        data.encode_labelled([ROWS[0], row], model.tokenizer, labels=LABELS, max_length=5)
    assert said in str(error.value)
    assert "1 of 2 rows" in str(error.value)


def test_labels_and_rows_that_teach_nothing_are_refused(model):
    for labels in (("no",), ("no", "no")):
        with pytest.raises(ValueError, match="expected at least two, each once"):
            data.encode_labelled(ROWS, model.tokenizer, labels=labels, max_length=5)
    with pytest.raises(ValueError, match="there are no rows"):
        data.encode_labelled([], model.tokenizer, labels=LABELS, max_length=5)


def test_a_file_of_labelled_rows_is_read_by_its_columns_and_held_out(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sentence,label,id\nwell,good,1\nill,bad,2\nwell,bad,3\n")
    said = []
    rows = data.read_labelled(path, columns={"text": "sentence"}, say=said.append)
    assert rows[1] == {"text": "ill", "label": "bad"}
    assert said == [f"{path}: left aside: 'id' (3 times)"]
    train, held_out = data.hold_out(rows, 1, seed=0)
    texts = {row["text"] for row in held_out}
    assert not texts & {row["text"] for row in train}
    with pytest.raises(ValueError, match="'prompt' is none of text, second, label"):
        data.read_labelled(path, columns={"prompt": "sentence"})
    path.write_text("sentence,mark\nwell,good\n")
    with pytest.raises(ValueError, match="'text' is missing") as error:
        data.read_labelled(path)
    assert '{"text": ..., "label": ...}' in str(error.value)


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jlora", "peft"])
def test_an_adapter_with_a_head_of_its_own_is_merged_by_the_command(
    base, model, tiny, kind, tmp_path, capsys
):
    frozen, lora, config = adapted(base, model)
    folder, out = tmp_path / "adapter", tmp_path / "out"
    if kind == "jlora":
        about = {"model": str(tiny), "labels": list(LABELS)}
        jlora.checkpoint.save(folder, lora, config, metadata=about)
    else:
        jlora.peft.save(folder, lora, config, model)
        assert jlora.peft.labels(folder, base) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert main(["merge", f"--model={tiny}", f"--adapter={folder}", f"--out={out}"]) == 0
    settings = json.loads((out / "config.json").read_text())
    names = LABELS if kind == "jlora" else ("LABEL_0", "LABEL_1", "LABEL_2")
    assert settings["architectures"] == ["LlamaForSequenceClassification"]
    assert settings["id2label"] == {str(at): name for at, name in enumerate(names)}
    assert settings["pad_token_id"] == 1  # of the token that ends texts: it has no other
    assert "score.weight" in load_file(out / "model.safetensors")
    again = models.load(out)
    assert again.config.labels == names
    expected = models.classify(model, TEXTS, frozen, lora)
    np.testing.assert_allclose(models.classify(again, TEXTS), expected, atol=1e-5)
    (out / "jlora.json").unlink()
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"a head with 3 labels: {', '.join(names)}" in " ".join(told.split())
    assert "template" not in told
    sent = tmp_path / "sent"
    assert main(["export", f"--model={tiny}", f"--adapter={folder}", f"--out={sent}"]) == 0
    settings = json.loads((sent / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("SEQ_CLS", ["score"])


def test_a_head_that_the_adapter_does_not_hold_is_refused(base, model, tiny, tmp_path):
    _, lora, _ = adapted(base, model)
    without = {path: node for path, node in lora.items() if path != "classifier/kernel"}
    with pytest.raises(ValueError, match="does not hold that whole"):
        models.export(tiny, tmp_path / "out", lora=without, labels=LABELS)
    with pytest.raises(ValueError, match="a head for 2 labels does not fit"):
        models.export(tiny, tmp_path / "out", lora=lora, labels=("no", "yes"))
    assert not (tmp_path / "out").exists()


def test_all_linear_leaves_what_trains_whole_alone():
    config = models.EncoderConfig(
        vocabulary=11, width=14, layers=1, heads=2, mlp_width=10, max_length=9, family="roberta",
        own_dense=True, pooler=False, labels=LABELS,
    )  # fmt: skip
    tokens = jnp.ones((1, 2), int)
    params = jax.jit(models.Encoder(config).init)(jax.random.key(0), tokens)["params"]
    model = models.EncoderModel(params, config, tokenizer=None, name="tiny")
    axes = jlora.trace_axes(model.apply, params, tokens)
    both = jlora.LoraConfig(targets="all-linear", train="classifier", rank=2)
    _, lora = jlora.split(params, both, jax.random.key(0), axes=axes)
    kinds = {path: node.kind for path, node in lora.items()}
    assert kinds["classifier/dense/kernel"] == kinds["classifier/out_proj/kernel"] == "whole"
    assert kinds["layers/attn/q_proj/kernel"] == "lora"
