"""A BERT with a head: pretrained on hidden words, adapted to say whether a sentence praises.

    python examples/bert_classification.py          a tiny model, which is made first
    python examples/bert_classification.py FOLDER   or a Hugging Face folder, or a hub id

The tiny encoder is trained whole, as BERT was: it names a word that is hidden from it. Then a fresh
head and an adapter learn from sentences with labels. These have four words of praise and blame; the
sentences of the test have four others, of which pretraining alone says what they mean.

It prints

    hidden words, step 1: loss 3.9
    hidden words, step 200: loss 0.4
    trainable 5,858 of 48,676 parameters (12.035 %) in 9 adapted leaves of rank 4; 23.43 kB beside 171.27 kB frozen
    praise, in words that had no label: 34 % right before, 100 % after
      the summer was superb: yes
      i think that the plot is really awful: no
"""  # noqa: E501

import dataclasses
import json
import random
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import safetensors.numpy
import tokenizers
from tokenizers import pre_tokenizers, processors

import jlora
from jlora import data, models, trainer

THINGS = ["soup", "bread", "song", "band", "wind", "summer", "actor", "plot"]
PRAISE, BLAME = ["great", "lovely", "fine", "superb"], ["bad", "dull", "awful", "weak"]
STEPS = 200
OTHERS = ["[MASK]", "the", "is", "was", "really", "i", "think", "that", "and", "stay", "leave"]
MASK = 4  # the first of these, behind the four special tokens


def sentences(count, words, seed, ending=False):
    """Rows such as {"text": "i think that the soup is really great", "label": "yes"}."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        word = rng.choice(words)
        begun = rng.choice(["the", "i think that the"])
        text = f"{begun} {rng.choice(THINGS)} {rng.choice(['is', 'was'])}"
        text += f"{rng.choice([' really', ''])} {word}"
        if ending:  # what pretraining alone sees
            text += f" and i {'stay' if word in PRAISE else 'leave'}"
        made.append({"text": text, "label": "yes" if word in PRAISE else "no"})
    return made


def write_tiny(folder):
    """A BERT of random weights as a Hugging Face folder, a token for each word."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *OTHERS, *THINGS, *PRAISE, *BLAME]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        **{"model_type": "bert", "vocab_size": len(words), "hidden_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
        **{"max_position_embeddings": 16, "pad_token_id": 0},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    config = models.from_huggingface(settings, "config.json")
    params = models.Encoder(config).init(jax.random.key(0), np.ones((1, 4), int))["params"]
    stored, tensors = models.EncoderModel(params, config, None, "tiny").stored, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        for layer, value in enumerate(leaf if path.startswith("layers/") else [leaf]):
            tensors |= models.to_stored(stored[path], layer, np.asarray(value))
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def accuracy(model, rows, *weights):
    """In percent."""
    best = models.classify(model, [row["text"] for row in rows], *weights).argmax(1)
    wanted = [model.config.labels.index(row["label"]) for row in rows]
    return 100 * models.accuracy(wanted, best)


def pretrained(model):
    """The encoder, trained whole to name one hidden word of each sentence."""
    texts = [row["text"] for row in sentences(1000, PRAISE + BLAME, seed=0, ending=True)]
    inputs = model.inputs(texts)

    def batches(number):
        rng = np.random.default_rng(number)
        rows = rng.integers(0, len(texts), 64)
        batch = {name: array[rows] for name, array in inputs.items()}
        places = rng.integers(1, batch["mask"].sum(1) - 1)
        batch["hidden"] = batch["tokens"][np.arange(64), places]
        batch["tokens"][np.arange(64), places] = MASK
        return batch | {"places": places}

    def loss(_, params, batch, dropout_key):
        seen = model.hidden(params, batch["tokens"], batch["mask"])
        seen = seen[np.arange(64), batch["places"]]
        return trainer.cross_entropy(seen @ params["embed"]["embedding"].T, batch["hidden"])

    tx = optax.adam(optax.warmup_cosine_decay_schedule(0, 4e-3, 20, STEPS))
    step = trainer.make_step(loss, tx, trains=lambda tree: jax.tree.map(lambda _: True, tree))
    state = trainer.init(model.params, tx, jax.random.key(1))
    for update in trainer.iterate(step, None, state, batches, steps=STEPS):
        if update.number == 1 or update.last:
            print(f"hidden words, step {update.number}: loss {update.metrics['loss']:.1f}")
    return dataclasses.replace(model, params=update.state.lora)


def main(base):
    """A fresh head and an adapter learn whether a sentence praises."""
    model = models.with_classifier(base, ("no", "yes"), jax.random.key(3))
    example = model.inputs(["the soup is great"])
    axes = jlora.trace_axes(model.apply, model.params, example["tokens"])
    fresh = models.fresh_leaves(base, model)
    config = jlora.LoraConfig(targets="all-linear", train=fresh, rank=4, alpha=8)
    frozen, lora = jlora.split(model.params, config, jax.random.key(4), axes=axes)
    print(jlora.summary(frozen, lora))

    rows = sentences(100, PRAISE[:2] + BLAME[:2], seed=2)
    tests = sentences(200, PRAISE[2:] + BLAME[2:], seed=3)
    examples, _ = data.encode_labelled(rows, model.tokenizer, labels=("no", "yes"), max_length=16)
    batches = data.LabelledBatches(examples, batch_size=20, shapes=1)
    before = accuracy(model, tests, frozen, lora)
    tx = jlora.optimizer(optax.adam(3e-3))
    loss = jlora.lift(lambda params, batch: models.classification_loss(model, params, batch))
    state = trainer.init(lora, tx, jax.random.key(5))
    lora = trainer.fit(trainer.make_step(loss, tx), frozen, state, batches, steps=60).lora
    after = accuracy(model, tests, frozen, lora)
    print(f"praise, in words that had no label: {before:.0f} % right before, {after:.0f} % after")
    for text in ("the summer was superb", "i think that the plot is really awful"):
        share = models.classify(model, [text], frozen, lora)[0, 1]
        print(f"  {text}: {'yes' if share > 0.5 else 'no'}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(models.load(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_tiny(Path(folder))
            tiny = models.load(folder)
        main(pretrained(tiny))
