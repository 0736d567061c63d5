"""Attention as JAX has it computes what attention in blocks of queries does, or is refused."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora import models
from jlora.models import Decoder, DecoderConfig, _attention, _jax_attention

CONFIG = DecoderConfig(
    vocabulary=37, width=22, layers=3, heads=6, kv_heads=2, head_dim=16, mlp_width=26, max_length=64
)
CONFIGS = {
    "llama": CONFIG,
    "a window as wide as the text": dataclasses.replace(CONFIG, windows=(19, None, 40)),
    "its own scale": dataclasses.replace(CONFIG, query_scalar=5.0),
    "normed heads, learned positions": dataclasses.replace(
        CONFIG, qk_norm=True, learned_positions=True
    ),
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 19), 0, 37)


def params_of(config, dtype="float32"):
    init: Any = Decoder(config).init
    return jax.tree.map(lambda leaf: leaf.astype(dtype), init(jax.random.key(0), TOKENS)["params"])


def loss_of(config, attention, remat=False):
    decoder: Any = Decoder(config, remat, attention)
    return lambda params, tokens: jnp.square(decoder.apply({"params": params}, tokens)).mean()


def distance(one, other):
    """The largest difference of two trees' leaves, each over the other leaf's largest entry."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    gaps = (np.abs(a - b).max() / (np.abs(b).max() or 1) for a, b in leaves)
    return max(map(float, gaps))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_values_and_gradients_are_those_of_blocks(config, monkeypatch):
    monkeypatch.setattr(_attention, "_block_size", lambda length: 5)
    params = params_of(config)
    step = lambda attention: jax.jit(jax.value_and_grad(loss_of(config, attention)))  # noqa: E731
    assert distance(step("xla")(params, TOKENS), step("blocks")(params, TOKENS)) < 1e-5


def test_in_bfloat16_it_is_as_near_to_float32_as_blocks_are():
    exact = jax.jit(loss_of(CONFIG, "blocks"))(params_of(CONFIG), TOKENS)
    narrow = params_of(CONFIG, "bfloat16")
    off = {
        a: distance(jax.jit(loss_of(CONFIG, a))(narrow, TOKENS), exact) for a in ("xla", "blocks")
    }
    assert off["xla"] < max(off["blocks"], 2**-8)


@pytest.mark.parametrize("remat", [False, True])
def test_adapters_stay_factored_beside_it(remat):
    params = params_of(CONFIG)
    config = jlora.LoraConfig(targets="_proj", rank=2, init="orthogonal")
    axes = jlora.trace_axes(loss_of(CONFIG, "xla", remat), params, TOKENS)
    frozen, lora = jlora.split(params, config, jax.random.key(2), axes=axes)
    lifted = jlora.lift(loss_of(CONFIG, "xla", remat), strict=True)
    got = jax.jit(jax.value_and_grad(lifted, 1))(frozen, lora, TOKENS)
    merged = lambda lora: loss_of(CONFIG, "blocks")(jlora.merge(frozen, lora), TOKENS)  # noqa: E731
    assert distance(got, jax.jit(jax.value_and_grad(merged))(lora)) < 1e-4
    apart = jax.vmap(lifted, (None, 0, None))
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), lora)
    assert np.isclose(jax.jit(apart)(frozen, both, TOKENS)[0], got[0], rtol=1e-5)


def test_answers_through_the_cache_are_those_of_blocks(tiny):
    rows = [[{"role": "user", "content": "12?"}], [{"role": "user", "content": "a longer one"}]]
    loaded = [models.load(tiny, attention=attention) for attention in ("xla", "blocks")]
    said = [models.answer(model, rows, max_new_tokens=6) for model in loaded]
    assert said[0] == said[1]


def test_the_fused_kernel_is_as_near_as_xla_or_refused_where_there_is_none(tiny):
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match="needs an NVIDIA GPU, and JAX runs on cpu here"):
            models.load(tiny, dtype="bfloat16", attention="cudnn")
        return
    narrow = params_of(CONFIG, "bfloat16")
    step = lambda attention: jax.jit(jax.value_and_grad(loss_of(CONFIG, attention)))  # noqa: E731
    exact = step("xla")(params_of(CONFIG), TOKENS)
    off = {a: distance(step(a)(narrow, TOKENS), exact) for a in ("xla", "cudnn")}
    assert off["cudnn"] < 2 * off["xla"]


@pytest.mark.parametrize(
    ("attention", "changes", "dtype", "told"),
    [
        ("flash", {}, "bfloat16", ["attention is 'flash': expected one of blocks, xla, cudnn"]),
        ("xla", {"attention_cap": 50.0}, "float32", ["caps its scores at 50: use"]),
        (
            "cudnn",
            {"attention_cap": 50.0, "head_dim": 20},
            "float32",
            ["caps its scores", "not in float32", "multiple of 8", "use attention='blocks'"],
        ),
        ("cudnn", {"head_dim": 264}, "float16", ["at most 256 dimensions, not 264"]),
    ],
)
def test_a_model_that_can_not_have_it_is_refused_with_every_reason(attention, changes, dtype, told):
    with pytest.raises(ValueError, match=f"attention(=| is )'{attention}'") as raised:
        _jax_attention.check(attention, dataclasses.replace(CONFIG, **changes), dtype)
    assert all(words in str(raised.value) for words in told)


def test_a_text_longer_than_a_window_is_refused():
    config = dataclasses.replace(CONFIG, windows=(18, None, 40))
    with pytest.raises(ValueError, match="has one of 18 tokens, which is less than the text's 19"):
        jax.eval_shape(loss_of(config, "xla"), params_of(config), TOKENS)
