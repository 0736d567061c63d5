"""The decoder of all families: experts, windows, the cache, blocks of queries."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_settings import abstract_params, config_of, random_params

from jlora.models import ClampedGate, Decoder, Experts
from jlora.models._net import _attention
from jlora.models._net._decoder import empty_cache
from jlora.trainer._flops import flops


def test_each_expert_computes_its_own_tokens_and_no_others():
    config = config_of("qwen3_moe")
    tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
    decoder = Decoder(config)
    traced = jax.make_jaxpr(decoder.apply)({"params": abstract_params(config)}, tokens)
    rows = re.findall(r"f32\[(\d+),\d+\] = ragged_dot", str(traced))
    assert rows == [str(2 * 9 * 2)] * 2  # gate and up in one, down; two experts for each token


EVERYTHING = dataclasses.replace(
    config_of("gemma3_text"),
    experts=Experts(
        5, 2, 7, normalised=True, biases=True, interleaved=True, clamped=ClampedGate(1.7, 0.5)
    ),
    sinks=True,
    windows=(3, None, 5),
    attention_cap=2.0,
)
# All that the first has not.
THE_REST = dataclasses.replace(
    config_of("gemma3_text"),
    experts=Experts(5, 2, 7, normalised=False, shared_width=6, shared_gated=True),
    windows=(3, None, 5),
    rotated=(True, True, False),
    norm="layer_plus_one",
    post_norms=False,
    parallel=True,
    qk_norm_joint=True,
    qk_norm_after=True,
    interleaved=True,
    rotary_share=0.6,
    attention_scale=0.3,
    logit_scale=0.5,
    embedding_scale=2.0,
    residual_scale=0.7,
)
# Its input is added to the one stream; global keys lie far before the local ones.
ONE_STREAM = dataclasses.replace(
    config_of("gemma3n_text"), streams=None, windows=(None, 4, 4, 4, None, 4), laurel_rank=None
)


@pytest.mark.parametrize(
    "config",
    [
        *(EVERYTHING, THE_REST, config_of("gpt2"), config_of("mistral"), config_of("olmo2")),
        *(config_of("deepseek_v3"), config_of("llama4_text", floor_scale=3)),
        *(config_of("qwen3_next"), config_of("gemma3n_text"), ONE_STREAM),
    ],
)
def test_tokens_in_pieces_through_the_cache_are_as_all_at_once_and_in_blocks(config, monkeypatch):
    monkeypatch.setattr(_attention, "_block_size", lambda length: 5)
    params = {"params": random_params(config)}
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 37)
    decoder = Decoder(config)
    whole = jax.jit(decoder.apply, static_argnames="method")(params, tokens, method="hidden")
    pad, slots = 4, jnp.arange(24)  # the rows begin behind four slots of padding
    cache = empty_cache(config, 2, 24, jnp.float32)

    @jax.jit
    def extend(tokens, cache, first):
        at = pad + first + jnp.arange(tokens.shape[1])
        seen = jnp.broadcast_to((slots <= at[:, None]) & (slots >= pad), (2, len(at), 24))
        positions = jnp.broadcast_to(at - pad, tokens.shape)
        return decoder.apply(params, tokens, positions, seen, cache, pad + first, method="extend")

    pieces = []
    for first, last in ((0, 13), (13, 14), (14, 15), (15, 16)):
        out, cache = extend(tokens[:, first:last], cache, first)
        pieces.append(out)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, rtol=1e-4, atol=1e-4)


def test_a_block_of_queries_meets_no_keys_that_come_after_it(monkeypatch):
    config, batch, length = config_of("llama"), 2, 256
    params = {"params": abstract_params(config)}
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def products(size):
        monkeypatch.setattr(_attention, "_block_size", lambda length: size)
        return flops(jax.make_jaxpr(Decoder(config).apply)(params, tokens).jaxpr)

    whole = 4 * batch * config.heads * length**2 * config.head_dim * config.layers
    assert products(length) - products(64) == whole * 6 // 16  # above the diagonal of 4 x 4 blocks


def test_a_window_hides_what_lies_further_back():
    config = dataclasses.replace(config_of("mistral"), layers=1, windows=(5,))
    params = {"params": random_params(config)}
    tokens = jnp.arange(12)[None]
    changed = tokens.at[0, 3].set(30)
    apply = jax.jit(Decoder(config).apply)
    moved = jnp.abs(apply(params, tokens) - apply(params, changed)).max(axis=-1)[0] > 0
    assert moved.tolist() == [False] * 3 + [True] * 5 + [False] * 4


def test_a_window_as_wide_as_the_text_costs_nothing():
    def program(windows):
        config = dataclasses.replace(config_of("mistral"), windows=windows)
        tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
        params = {"params": abstract_params(config)}
        return jax.jit(Decoder(config).apply).lower(params, tokens).as_text()

    assert program((9, 30, None)) == program(None)
    assert program((9, 8, None)) != program(None)


def test_more_tokens_than_learned_positions_are_refused():
    config = config_of("gpt2", n_positions=8)
    tokens = jax.ShapeDtypeStruct((1, 9), jnp.int32)
    with pytest.raises(ValueError, match="9 tokens are longer than the 8 positions"):
        jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)
