"""Answers: cached as uncached, padded as alone, adapted as merged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora import models


@pytest.fixture(scope="module")
def model(tiny):
    return models.load(tiny)


PROMPTS = [[3, 50, 7, 91, 22], [44, 9], [17, 60, 61, 5, 5, 80, 12, 33, 8]]


def padded(prompts):
    width = max(map(len, prompts)) + 2
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    starts = np.array([width - len(prompt) for prompt in prompts], np.int32)
    return jnp.asarray(tokens), jnp.asarray(starts)


def uncached(model, params, prompt, count):
    """Every token by a pass over the whole text so far (what stands to its right is not seen)."""
    apply = jax.jit(model.apply)
    tokens = list(prompt)
    for _ in range(count):
        text = np.zeros((1, 64), np.int32)
        text[0, : len(tokens)] = tokens
        logits = apply(params, text)[0, len(tokens) - 1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in model.tokenizer.stop_ids:
            break
    written = tokens[len(prompt) :]
    return written + [model.tokenizer.stop_ids[0]] * (count - len(written))


def adapter(model):
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    axes = jlora.trace_axes(model.apply, model.params, tokens)
    config = jlora.LoraConfig(targets="kernel", rank=3)
    frozen, lora = jlora.split(model.params, config, jax.random.key(1), axes=axes)
    lora = jax.tree.map(
        lambda leaf: (
            jax.random.normal(jax.random.key(leaf.size), leaf.shape) / 4 if leaf.ndim else leaf
        ),
        lora,
    )
    return frozen, lora


def test_prompts_of_different_length_answer_as_each_alone_and_without_a_cache(model):
    tokens, starts = padded(PROMPTS)
    written = model.generate(model.params, tokens, starts, max_new_tokens=7)
    assert written.tolist() == [uncached(model, model.params, p, 7) for p in PROMPTS]


def test_generation_through_the_adapter_is_that_of_the_merged_weights(model):
    frozen, lora = adapter(model)
    tokens, starts = padded(PROMPTS)

    def generate(params):
        return model.generate(params, tokens, starts, max_new_tokens=7)

    adapted = jlora.lift(generate, strict=True)(frozen, lora)
    assert adapted.tolist() == generate(jlora.merge(frozen, lora)).tolist()
    assert adapted.tolist() != generate(frozen).tolist()


def test_after_a_stop_token_nothing_more_is_written(model):
    tokens, starts = padded(PROMPTS)
    free = model.generate(model.params, tokens, starts, max_new_tokens=7).tolist()
    stop = free[2][1]  # as if the token that the third row writes second ended an answer
    tokenizer = dataclasses.replace(model.tokenizer, stop_ids=(stop,))
    stopping = dataclasses.replace(model, tokenizer=tokenizer)
    written = stopping.generate(model.params, tokens, starts, max_new_tokens=7).tolist()
    assert written[2][2:] == [stop] * 5 != free[2][2:]
    for row, whole in zip(written, free, strict=True):
        until = whole.index(stop) if stop in whole else 7
        assert row == whole[:until] + [stop] * (7 - until)


def test_answer_gives_rows_their_own_answers_in_their_own_order(model):
    rows = [[{"role": "user", "content": text}] for text in ("a long question, so to say", "b", "")]
    together = models.answer(model, rows, max_new_tokens=6)
    alone = [models.answer(model, [row], max_new_tokens=6)[0] for row in rows]
    assert together == alone
    assert len(set(alone)) > 1
    one_by_one = models.answer(model, rows, max_new_tokens=6, batch_size=1)
    assert one_by_one == alone


def test_answer_is_the_text_that_an_uncached_loop_writes(model):
    row = [{"role": "user", "content": "on or off?"}]
    prompt = model.tokenizer.encode(model.tokenizer.render(row, add_generation_prompt=True))
    written = uncached(model, model.params, prompt, 6)
    stop = model.tokenizer.stop_ids[0]
    kept = written[: written.index(stop)] if stop in written else written
    assert models.answer(model, [row], max_new_tokens=6) == [model.tokenizer.decode(kept)]


def test_answer_refuses_what_is_longer_than_the_positions(model):
    row = [{"role": "user", "content": "x" * 300}]
    with pytest.raises(ValueError, match=r"a prompt of 3\d\d tokens .* the 256 positions of"):
        models.answer(model, [row], max_new_tokens=6)


def test_rematerialised_layers_give_the_same_loss_and_gradients(model):
    tokens = jnp.asarray([PROMPTS[2]])

    def loss(params, remat):
        return (model.apply(params, tokens, remat=remat) ** 2).mean()

    kept, grads = jax.value_and_grad(loss)(model.params, False)
    again, regrads = jax.value_and_grad(loss)(model.params, True)
    np.testing.assert_allclose(kept, again, rtol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), grads, regrads
    )


def test_rematerialised_layers_keep_less_for_the_gradient(model):
    tokens = jnp.zeros((8, 200), jnp.int32)

    def kept(remat):
        def loss(params):
            return (model.hidden(params, tokens, remat=remat) ** 2).mean()

        compiled = jax.jit(jax.grad(loss)).lower(model.params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert kept(True) < 0.7 * kept(False)
