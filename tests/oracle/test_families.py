"""Small random models of every family against transformers on torch.

Logits, gradients of adapters, greedy answers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from random_models import (
    PROMPTS,
    TOKENS,
    assert_near,
    both,
    flat,
    logits_of,
    opened_by_transformers,
    per_layer,
)
from variants import EAGER, VARIANTS

import jlora
from jlora.models._families import FAMILIES
from jlora.models._files._torch_tensors import oriented

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant):
    oracle, model, _ = both(variant)
    assert_near(jax.jit(model.apply)(model.params, TOKENS), logits_of(oracle), 1e-4)


def adapted(model):
    """(frozen, lora) with random adapters on every linear weight but the head, the router's too."""
    axes = jlora.trace_axes(model.apply, model.params, jnp.asarray(TOKENS))
    narrow = {"shared_gate": 1} if any("shared_gate" in path for path in model.stored) else {}
    config = jlora.LoraConfig(targets="^(?!head/).*/kernel", rank=3, alpha=5, rank_pattern=narrow)
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    return frozen, jax.tree.map(
        lambda leaf: (
            0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape) if leaf.ndim else leaf
        ),
        lora,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_adapters_are_those_of_torch_through_the_merged_weights(family):
    _, model, folder = both(family)
    tokens = jnp.asarray(TOKENS)
    frozen, lora = adapted(model)
    linear = {path for path, leaf in model.stored.items() if leaf.kind not in ("plain", "buffer")}
    assert set(lora) == linear - {"head/kernel"}

    def loss(params):
        logits = model.apply(params, tokens, remat="full")[:, :-1]
        scores = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1).mean()

    assert jlora.explain(loss, frozen, lora).materialised == 0
    lifted = jlora.lift(loss, strict=True)
    ours, grads = jax.jit(jax.value_and_grad(lifted, argnums=1))(frozen, lora)

    oracle = opened_by_transformers(folder, **EAGER)
    parameters = dict(oracle.named_parameters())
    merged = flat(jlora.merge(frozen, lora))
    for path in lora:
        for layer, value in per_layer(path, np.asarray(merged[path])):
            held = np.ascontiguousarray(oriented(model.stored[path], value))
            parameters[model.names[path].format(layer)].data = torch.tensor(held)
    theirs = oracle(torch.tensor(TOKENS), labels=torch.tensor(TOKENS)).loss
    theirs.backward()
    assert abs(float(ours) - theirs.item()) < 1e-5 * abs(theirs.item())
    for path, node in lora.items():
        s = np.asarray(node.scaling)
        parts = (np.asarray(part) for each in (node, grads[path]) for part in (each.a, each.b))
        parts = zip(*(per_layer(path, part) for part in parts), strict=True)
        for (layer, a), (_, b), (_, grad_a), (_, grad_b) in parts:
            held = parameters[model.names[path].format(layer)].grad.numpy()
            of_weight = oriented(model.stored[path], held)  # (*experts, in, out)
            for got, want in (
                (grad_a, s * of_weight @ b.swapaxes(-1, -2)),
                (grad_b, s * a.swapaxes(-1, -2) @ of_weight),
            ):
                assert np.abs(want).max() > 0
                assert np.abs(got - want).max() < 1e-4 * np.abs(want).max(), path


@pytest.mark.parametrize("variant", [*FAMILIES, "qwen2, windows", "qwen3_moe, window"])
def test_greedy_answers_to_prompts_of_different_length_are_those_of_transformers(variant):
    oracle, model, _ = both(variant)
    width, count = max(map(len, PROMPTS)), 14
    tokens = np.zeros((len(PROMPTS), width), np.int32)
    seen = np.zeros_like(tokens)
    for line, prompt in enumerate(PROMPTS):
        tokens[line, width - len(prompt) :] = prompt
        seen[line, width - len(prompt) :] = 1
    starts = width - seen.sum(axis=1)
    generate = jax.jit(model.generate, static_argnames="max_new_tokens")
    ours = np.asarray(generate(model.params, tokens, starts, max_new_tokens=count))
    theirs = oracle.generate(
        torch.tensor(tokens.astype(np.int64)),
        attention_mask=torch.tensor(seen.astype(np.int64)),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=2,
        eos_token_id=2,
    )[:, width:].numpy()
    assert (ours[:, : theirs.shape[1]] == theirs).all()
    texts = np.zeros((len(PROMPTS), width + count), np.int32)
    for line, prompt in enumerate(PROMPTS):
        texts[line, : len(prompt) + count] = [*prompt, *ours[line]]
    uncached = np.asarray(jax.jit(model.apply)(model.params, texts)).argmax(axis=-1)
    for line, prompt in enumerate(PROMPTS):
        written = ours[line].tolist()
        kept = written.index(2) if 2 in written else count
        at = slice(len(prompt) - 1, len(prompt) - 1 + kept)
        assert uncached[line, at].tolist() == written[:kept]


@pytest.mark.parametrize("variant", ["phi3, longrope, a long text", "llama, dynamic rope"])
def test_greedy_answers_that_grow_past_the_original_length_are_those_of_transformers(variant):
    _, model, folder = both(variant)
    # a fresh one: transformers' dynamic frequencies remember the longest text so far
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, **EAGER)
    generate = jax.jit(model.generate, static_argnames="max_new_tokens")
    for length in (12, 20, 30):
        prompt = TOKENS[:1, :length]
        ours = generate(model.params, prompt, np.zeros(1, np.int32), max_new_tokens=14)
        theirs = oracle.generate(
            torch.tensor(prompt), max_new_tokens=14, do_sample=False, eos_token_id=2
        )
        theirs = theirs[0, length:].tolist()
        assert ours[0].tolist()[: len(theirs)] == theirs, length
        oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, **EAGER)
