"""The gated delta rule in chunks against one token after the other; padding leaves no trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_settings import config_of, random_params

from jlora.models import Decoder
from jlora.models._net import _delta_rule
from jlora.models._net._decoder import empty_cache

BATCH, LENGTH, HEADS, KEY, VALUE = 2, 11, 3, 5, 4


def drawn():
    rng = np.random.default_rng(0)
    shape = (BATCH, LENGTH, HEADS)
    query, key = rng.normal(size=(2, *shape, KEY))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    value, state = rng.normal(size=(*shape, VALUE)), rng.normal(size=(BATCH, HEADS, KEY, VALUE))
    return query, key, value, -rng.uniform(0, 2, shape), rng.uniform(0, 1, shape), state


def by_hand(query, key, value, decay, strength, state):
    read = np.zeros(value.shape)
    state = state.copy()
    for row, at, head in np.ndindex(BATCH, LENGTH, HEADS):
        its, place = state[row, head], (row, at, head)
        its *= np.exp(decay[place])
        its += strength[place] * np.outer(key[place], value[place] - its.T @ key[place])
        read[place] = its.T @ query[place]
    return read, state


@pytest.mark.parametrize("size", [1, 3, 4, 64])
def test_chunks_read_and_leave_what_one_token_after_the_other_does(size, monkeypatch):
    monkeypatch.setattr(_delta_rule, "_CHUNK", size)
    got = _delta_rule.gated_delta_rule(*(jnp.asarray(each, jnp.float32) for each in drawn()))
    for ours, want in zip(got, by_hand(*drawn()), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 61, 64])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_the_inverse_is_exact_to_rounding_however_alike_the_keys_are(spread, size):
    rng = np.random.default_rng(size)
    key = rng.normal(size=(3, 1, KEY)) + spread * rng.normal(size=(3, size, KEY))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    below = np.tril(rng.uniform(0.7, 1, (3, size, 1)) * (key @ key.swapaxes(-1, -2)), -1)
    below = below.astype(np.float32)
    want = np.linalg.inv(below.astype(np.float64) + np.eye(size))
    np.testing.assert_allclose(_delta_rule._inverse(jnp.asarray(below)), want, rtol=0, atol=3e-6)


def test_neither_reading_nor_its_gradient_calls_lapack():
    def loss(*given):
        return _delta_rule.gated_delta_rule(*given)[0].sum()

    given = [jnp.asarray(each, jnp.float32) for each in drawn()]
    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4, 5))).lower(*given).as_text()
    assert "lapack" not in text
    assert "triangular_solve" not in text


def test_padding_before_a_text_leaves_nothing_in_the_state():
    config = config_of("qwen3_next")
    params, decoder = {"params": random_params(config)}, Decoder(config)
    text = jax.random.randint(jax.random.key(0), (1, 7), 0, 37)

    @jax.jit
    def extend(tokens, pad):
        slots = jnp.arange(12)
        seen = ((slots <= slots[:, None]) & (slots >= pad))[None]
        positions = jnp.maximum(slots - pad, 0)[None]
        cache = empty_cache(config, 1, 12, jnp.float32)
        return decoder.apply(params, tokens, positions, seen, cache, 0, method="extend")

    padded, kept = extend(jnp.concatenate([jnp.full((1, 5), 31), text], axis=1), 5)
    other, kept_too = extend(jnp.concatenate([jnp.full((1, 5), 2), text], axis=1), 5)
    plain = jax.jit(lambda: decoder.apply(params, text, method="hidden"))()
    np.testing.assert_allclose(padded[:, 5:], plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(padded[:, 5:], other[:, 5:])
    for one, two in zip(kept[0], kept_too[0], strict=True):
        np.testing.assert_array_equal(one, two)
