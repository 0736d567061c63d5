"""A language model in a GGUF file: load it, train an adapter, answer, save the adapter.

    python examples/gguf_model.py              a tiny model, which is made first
    python examples/gguf_model.py MODEL.gguf   or one of yours

The tiny model has one token a letter and is trained whole to add: ``3+4`` gives ``7``. It is then
written as a GGUF file, and from there on all is as for any other. The adapter teaches it to say
whether a sum is odd or even, and is measured on sums that its training left out.

It prints

    the model adds: 100 % of 100 sums are right
    trainable 16,384 of 93,248 parameters (17.570 %) in 7 adapted leaves of rank 8; 65.54 kB beside 307.46 kB frozen
    odd or even, of 25 unseen sums: 0 % right before, 88 % after
    0+8 is even
    saved and read again, it gives the same answers: True
"""  # noqa: E501

import sys
import tempfile
from pathlib import Path

import gguf
import jax
import numpy as np
import optax

import jlora
from jlora import data, models, trainer

EOS, LAYERS, STEPS = "<|endoftext|>", 2, 200
TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'user' %}={% else %}" + EOS + "{% endif %}{% endfor %}"
)
PAIRS = [(a, b) for a in range(10) for b in range(10)]


def conversation(a, b, answer):
    """The row for one sum."""
    return [{"role": "user", "content": f"{a}+{b}"}, {"role": "assistant", "content": answer}]


SUMS = [conversation(a, b, str(a + b)) for a, b in PAIRS]
WORDS = [conversation(a, b, "even" if (a + b) % 2 == 0 else "odd") for a, b in PAIRS]


def write(path, tensors):
    """The GGUF file of a tiny Qwen 2 with these tensors, named as in transformers."""
    tokens = [EOS, *"0123456789+=abcdefghijklmnopqrstuvwxyz", "od"]
    writer = gguf.GGUFWriter(path, "qwen2")
    for entry, value in {
        **{"block_count": LAYERS, "context_length": 64, "embedding_length": 64},
        **{"feed_forward_length": 128, "head_count": 4, "head_count_kv": 2},
        **{"layer_norm_rms_eps": 1e-6, "rope_freq_base": 10_000.0, "tokenizer_model": "gpt2"},
        **{"tokenizer_pre": "qwen2", "token_list": tokens, "token_merges": ["o d"]},
        **{"token_types": [3] + [1] * (len(tokens) - 1), "eos_token_id": 0},
        **{"chat_template": TEMPLATE},
    }.items():
        getattr(writer, f"add_{entry}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, LAYERS)
    for name, tensor in tensors.items():
        bare, ending = name.rsplit(".", 1)
        tensor = np.ascontiguousarray(tensor, np.float32)
        writer.add_tensor(f"{names.get_name(bare)}.{ending}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(model, params):
    """The parameters as transformers has them: a tensor for each layer, (out, in)."""
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        for layer, value in enumerate(leaf if path.startswith("layers/") else [leaf]):
            tensors |= models.to_stored(model.stored[path], layer, np.asarray(value))
    return tensors


def tiny(path):
    """Writes a model that can add: drawn at random, trained whole, written again."""
    drawn = models.from_huggingface(SETTINGS, "config.json")
    params = jax.jit(models.Decoder(drawn).init)(jax.random.key(0), np.ones((1, 4), int))["params"]
    write(path, tensors_of(models.Model(params, drawn, None, "tiny"), params))
    model = models.load(path)
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, 300))
    step = trainer.make_step(
        lambda _, params, batch, dropout_key: models.answer_loss(model, params, batch),
        tx,
        trains=lambda params: jax.tree.map(lambda _: True, params),
    )
    examples, _ = data.encode(SUMS, model.tokenizer, max_length=32)
    batches = data.Batches(examples, batch_size=32, shapes=1)
    state = trainer.init(model.params, tx, jax.random.key(1))
    write(path, tensors_of(model, trainer.fit(step, None, state, batches, steps=300).lora))


SETTINGS = {
    **{"model_type": "qwen2", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0},
    **{"hidden_act": "silu", "tie_word_embeddings": True, "eos_token_id": 0},
}


def answers(model, rows, *weights):
    """The model's answers, and how many are the row's own, in percent."""
    questions = [row[:1] for row in rows]
    given = models.answer(model, questions, *weights, max_new_tokens=8, batch_size=25)
    right = [text == row[1]["content"] for text, row in zip(given, rows, strict=True)]
    return given, 100 * np.mean(right)


def main(path, folder):
    """Loads, trains, answers, saves."""
    model = models.load(path)
    print(f"the model adds: {answers(model, SUMS)[1]:.0f} % of 100 sums are right")

    axes = jlora.trace_axes(model.apply, model.params, np.ones((1, 4), int))
    config = jlora.LoraConfig(targets="all-linear", rank=8, alpha=16)
    frozen, lora = jlora.split(model.params, config, jax.random.key(2), axes=axes)
    print(jlora.summary(frozen, lora))

    seen, unseen = data.hold_out(WORDS, 25, seed=0)
    examples, _ = data.encode(seen, model.tokenizer, max_length=64)
    batches = data.Batches(examples, batch_size=25, shapes=1)
    tx = jlora.optimizer(optax.adam(optax.cosine_decay_schedule(1e-2, STEPS)))
    loss = jlora.lift(lambda params, batch: models.answer_loss(model, params, batch))
    state = trainer.init(lora, tx, jax.random.key(3))
    _, before = answers(model, unseen, frozen, lora)
    lora = trainer.fit(trainer.make_step(loss, tx), frozen, state, batches, steps=STEPS).lora
    given, after = answers(model, unseen, frozen, lora)
    print(f"odd or even, of 25 unseen sums: {before:.0f} % right before, {after:.0f} % after")
    print(f"{unseen[0][0]['content']} is {given[0]}")

    jlora.checkpoint.save(folder, lora, config, base=frozen)
    again, _ = jlora.checkpoint.restore(folder, base=frozen)
    same = answers(model, unseen, frozen, again)[0] == given
    print(f"saved and read again, it gives the same answers: {same}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        if len(sys.argv) == 1:
            tiny(Path(temporary, "tiny.gguf"))
        main(*(sys.argv[1:] or [Path(temporary, "tiny.gguf")]), Path(temporary, "adapter"))
