"""Texts that share a sequence are what each would be alone, in every kind of attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_settings import config_of, random_params
from test_models_decoder import EVERYTHING

import jlora
from jlora import models
from jlora.data import Batches, Example, PackedBatches
from jlora.models import Decoder, LongRopeScaling
from jlora.models._net import _attention
from jlora.models._net._rotary import rotary
from jlora.models._net._texts import texts_of

LENGTHS = (6, 2, 8)  # in blocks of 6 queries, with windows of 3 and 5 keys
TOKENS = jax.random.randint(jax.random.key(1), (1, 16), 0, 37)
SEGMENTS = jnp.repeat(jnp.array([1, 2, 3]), jnp.array(LENGTHS))[None]
CONFIGS = {
    "plain": config_of("llama"),
    "windows of all widths, sinks, caps, experts, two ways to rotate": EVERYTHING,
    "latent": dataclasses.replace(config_of("deepseek_v3"), experts=None, expert_layers=None),
}


def apart(row):
    """Each text in a row of its own, padded on the right; one row for each."""
    parts = jnp.split(row[0], np.cumsum(LENGTHS)[:-1])
    return jnp.stack([jnp.pad(part, (0, 16 - len(part))) for part in parts])


def together(row):
    """All texts in the first of as many rows, whose others are padding."""
    return jnp.pad(row, ((0, len(LENGTHS) - 1), (0, 0)))


@functools.cache
def traced(name):
    """(params, tokens, segments) -> (hidden states, gradients of a sum over real positions)."""
    decoder = Decoder(CONFIGS[name])

    def loss(params, tokens, segments, weights):
        hidden = decoder.apply({"params": params}, tokens, segments, method="hidden")
        return jnp.sum(jnp.sin(hidden) * weights[..., None]), hidden

    return random_params(CONFIGS[name]), jax.jit(jax.grad(loss, has_aux=True))


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(_attention, "_block_size", lambda length: 6)


def assert_near(got, want, tolerance=1e-5):
    """Leaf by leaf, within a share of the leaf's largest entry."""

    def near(one, other):
        size = jnp.abs(other).max() + 1e-30
        np.testing.assert_allclose(one / size, other / size, rtol=0, atol=tolerance)

    jax.tree.map(near, got, want)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_texts_have_the_states_and_gradients_of_texts_alone(name):
    params, run = traced(name)
    ones = jnp.ones((1, 16))
    grads, hidden = run(params, *map(together, (TOKENS, SEGMENTS, ones)))
    wanted, each = run(params, apart(TOKENS), jnp.ones((3, 16), int), apart(ones))
    for row, part in enumerate(jnp.split(hidden[0], np.cumsum(LENGTHS)[:-1])):
        assert_near(part, each[row, : len(part)])
    assert_near(grads, wanted)


def test_a_sequence_of_one_text_is_what_it_is_without_segments():
    params, run = traced("plain")
    tokens, weights = apart(TOKENS), apart(jnp.ones((1, 16)))
    one_text = jnp.ones((3, 16), int)
    assert_near(run(params, tokens, one_text, weights), run(params, tokens, None, weights))


@pytest.mark.parametrize("name", CONFIGS)
def test_another_token_changes_its_own_text_from_there_on_alone(name):
    params, run = traced(name)
    ones = jnp.ones((1, 16))
    _, hidden = run(params, *map(together, (TOKENS, SEGMENTS, ones)))
    for place, end in ((0, 6), (4, 6), (6, 8), (9, 16)):
        changed = TOKENS.at[0, place].set((TOKENS[0, place] + 1) % 37)
        _, other = run(params, *map(together, (changed, SEGMENTS, ones)))
        [moved] = np.nonzero(np.abs(hidden - other)[0].max(axis=-1) > 1e-6)
        assert place == moved.min()
        assert moved.max() < end


def test_other_numbers_for_the_segments_change_nothing():
    params, run = traced("plain")

    def numbered(*numbers):
        segments = jnp.array(numbers)[SEGMENTS - 1]
        return run(params, *map(together, (TOKENS, segments, jnp.ones((1, 16)))))

    for other in (numbered(-7, 0, 2**30), numbered(5, 2, 5)):
        jax.tree.map(np.testing.assert_array_equal, other, numbered(1, 2, 3))


@pytest.mark.parametrize("family", ["phi3", "hunyuan_v1_dense"])
def test_a_packed_text_is_turned_by_its_own_length(family):
    """Not by that of the sequence: long and short texts are turned in different ways."""
    config = config_of(family)
    if family == "phi3":
        scaling = LongRopeScaling((1, 2, 2, 3, 4), (2, 4, 6, 8, 9), 7, 1.1)
    else:
        scaling = models.DynamicRopeScaling(factor=2.0, max_position=3)
    config = dataclasses.replace(config, rope_scaling=scaling)
    texts = texts_of(SEGMENTS)
    packed = rotary(config, texts.positions, texts.lengths, jnp.float32, local=False)
    for start, length in zip((0, 6, 8), LENGTHS, strict=True):
        places = jnp.arange(length)[None]
        its = rotary(config, places, jnp.array([[length]]), jnp.float32, local=False)
        for one, other in zip(packed, its, strict=True):
            np.testing.assert_allclose(one[:, start : start + length], other, atol=1e-6)


@pytest.fixture(scope="module")
def model(tiny):
    return models.load(tiny)


def test_a_packed_batch_has_the_loss_and_gradient_of_its_rows_through_adapters(model, monkeypatch):
    """In real blocks of 64 queries; sequences that end in padding and one that is empty."""
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    rows = [
        Example(rng.integers(0, 250, length).tolist(), [*range(length // 3, length - 1)])
        for length in (70, 9, 41, 33, 90, 12)
    ]
    packed = PackedBatches(rows, batch_size=3, length=150)
    unpacked = Batches(rows, batch_size=6, shapes=1)
    assert (packed.per_epoch, unpacked.per_epoch) == (1, 1)
    axes = jlora.trace_axes(model.apply, model.params, unpacked(0)["tokens"])
    config = jlora.LoraConfig(targets="_proj", rank=2, init="orthogonal")
    frozen, lora = jlora.split(model.params, config, jax.random.key(2), axes=axes)
    loss = jlora.lift(functools.partial(models.answer_loss, model), strict=True)
    run = jax.jit(jax.value_and_grad(loss, 1, has_aux=True))
    (total, count), grads = run(frozen, lora, packed(0))
    (wanted, number), wanted_grads = run(frozen, lora, unpacked(0))
    assert int(count) == int(number) == sum(len(row.answers) for row in rows)
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    assert_near(grads, wanted_grads)


@pytest.mark.parametrize("attention", ["xla", "cudnn"])
def test_attention_that_would_let_texts_meet_is_refused(model, attention):
    model = dataclasses.replace(model, attention=attention)
    batch = PackedBatches([Example([1, 2, 3], [0, 1])] * 4, batch_size=1, length=6)(0)
    with pytest.raises(ValueError, match=f"'{attention}' does not keep .* use .*'blocks'"):
        models.answer_loss(model, model.params, batch)
    with pytest.raises(ValueError, match="does not keep the texts"):
        model.apply(model.params, batch["tokens"], segments=batch["segments"])
