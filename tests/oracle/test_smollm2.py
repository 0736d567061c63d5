"""SmolLM2 against transformers on torch, and the laws on the real model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

import jlora
from jlora import models

TARGETS = "(q|k|v|o|gate|up|down)_proj"
TEXTS = [
    "The capital of France is",
    "In 1984 there were 1,024 reasons; 3.14159 of them irrational.\n\n\tdef f(x):\n  return x**2\n",
    "  leading spaces, naïve café — 東京 🚀👩‍👩‍👧 ﬁns",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def oracle(smollm2_path):
    options = {"gguf_file": smollm2_path.name, "local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(smollm2_path.parent), dtype=torch.float32, **options
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(smollm2_path.parent), **options)
    return model.eval(), tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_transformers(text, smollm2, oracle):
    _, tokenizer = oracle
    ours = smollm2.tokenizer.encode(text)
    assert ours == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_conversation_is_written_as_transformers_writes_it(smollm2, oracle):
    _, tokenizer = oracle
    messages = [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Sure?"},
    ]
    for messages_ in (messages, [{"role": "system", "content": "Be brief."}, *messages]):
        for prompt in (True, False):
            theirs = tokenizer.apply_chat_template(
                messages_,
                chat_template=smollm2.tokenizer.template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
            assert smollm2.tokenizer.render(messages_, add_generation_prompt=prompt) == theirs


def test_logits_are_those_of_transformers(smollm2, oracle):
    model, tokenizer = oracle
    for text in TEXTS[:3]:
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            theirs = model(tokens).logits.numpy()
        ours = np.asarray(jax.jit(smollm2.apply)(smollm2.params, jnp.asarray(tokens.numpy())))
        assert np.abs(ours - theirs).max() < 1e-3 * theirs.std()


def test_the_greedy_answer_is_that_of_transformers(smollm2, oracle):
    model, tokenizer = oracle
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = smollm2.tokenizer.render(messages, add_generation_prompt=True)
    tokens = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    theirs = model.generate(**tokens, max_new_tokens=16, do_sample=False)[0]
    theirs = tokenizer.decode(theirs[tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    [ours] = models.answer(smollm2, [messages], max_new_tokens=16)
    assert ours == theirs == "The capital of France is Paris."


@pytest.fixture(scope="module")
def trained(smollm2):
    """SmolLM2 with an adapter on every linear layer that is not zero."""
    tokens = jnp.asarray([smollm2.tokenizer.encode(TEXTS[1])[:24]] * 2)
    axes = jlora.trace_axes(smollm2.apply, smollm2.params, tokens)
    config = jlora.LoraConfig(targets=TARGETS, rank=8)
    frozen, lora = jlora.split(smollm2.params, config, jax.random.key(0), axes=axes)
    return (
        frozen,
        jax.tree.map(
            lambda leaf: (
                0.02 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
                if leaf.ndim
                else leaf
            ),
            lora,
        ),
        tokens,
    )


def test_lifted_smollm2_is_the_merged_one_and_merges_nothing(smollm2, trained):
    frozen, lora, tokens = trained
    report = jlora.explain(smollm2.apply, frozen, lora, tokens)
    assert (len(report.paths), report.factored, report.materialised) == (7, 7, 0)
    lifted = jax.jit(jlora.lift(smollm2.apply, strict=True))
    base = jax.jit(smollm2.apply)
    got, want = lifted(frozen, lora, tokens), base(jlora.merge(frozen, lora), tokens)
    assert jnp.abs(want - base(frozen, tokens)).max() > 0.1  # the adapter does something
    assert jnp.abs(got - want).max() < 1e-3 * want.std()

    def loss(logits):
        return jnp.mean(jax.nn.log_softmax(logits)[..., 7])

    ours = jax.jit(jax.grad(lambda lora: loss(lifted(frozen, lora, tokens))))(lora)
    theirs = jax.jit(jax.grad(lambda lora: loss(base(jlora.merge(frozen, lora), tokens))))(lora)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert jnp.abs(one - other).max() <= 1e-3 * jnp.abs(other).max()


def test_split_then_merge_gives_every_bit_of_smollm2_back(smollm2, trained):
    frozen, lora, _ = trained
    fresh = {path: type(n)(n.a, 0 * n.b, n.scaling, n.axes) for path, n in lora.items()}
    for before, after in zip(
        jax.tree.leaves(smollm2.params), jax.tree.leaves(jlora.merge(frozen, fresh)), strict=True
    ):
        assert (np.asarray(before).view(np.uint32) == np.asarray(after).view(np.uint32)).all()


def test_each_example_may_have_its_own_adapter(smollm2, trained):
    frozen, lora, tokens = trained
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), lora)
    lifted = jlora.lift(smollm2.apply, strict=True)
    got = jax.jit(jax.vmap(lifted, in_axes=(None, 0, 0)))(frozen, both, tokens[:, None, :8])
    for at in range(2):
        one = jax.tree.map(lambda leaf, at=at: leaf[at], both)
        want = jax.jit(lifted)(frozen, one, tokens[at : at + 1, :8])
        assert jnp.abs(got[at] - want).max() < 1e-3 * want.std()


def test_training_smollm2_leaves_the_frozen_weights_as_they_are(smollm2, trained):
    frozen, lora, tokens = trained
    before = jax.tree.map(lambda leaf: np.array(leaf), frozen)
    tx = jlora.optimizer(optax.adamw(1e-2, weight_decay=0.1))
    state = tx.init(lora)
    lifted = jlora.lift(smollm2.apply, strict=True)

    @jax.jit
    def step(frozen, lora, state):
        def loss(lora):
            logits = lifted(frozen, lora, tokens)[:, :-1]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
            return losses.mean()

        value, grads = jax.value_and_grad(loss)(lora)
        updates, state = tx.update(grads, state, lora)
        return optax.apply_updates(lora, updates), state, value

    losses = []
    for _ in range(3):
        lora, state, value = step(frozen, lora, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    for was, now in zip(jax.tree.leaves(before), jax.tree.leaves(frozen), strict=True):
        assert (was == np.asarray(now)).all()
