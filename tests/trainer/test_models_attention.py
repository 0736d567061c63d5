"""Attention as JAX has it computes what attention in blocks of queries does, or is refused."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora import models
from jlora.models import Decoder, DecoderConfig
from jlora.models._net import _attention, _fused_attention
from jlora.models._net._decoder import empty_cache
from jlora.trainer._flops import flops

CONFIG = DecoderConfig(
    vocabulary=37, width=22, layers=3, heads=6, kv_heads=2, head_dim=16, mlp_width=26, max_length=64
)
CONFIGS = {
    "llama": CONFIG,
    "a window": dataclasses.replace(CONFIG, windows=(5, 5, 5)),
    "its own scale": dataclasses.replace(CONFIG, query_scalar=5.0),
    "normed heads, learned positions": dataclasses.replace(
        CONFIG, qk_norm=True, learned_positions=True
    ),
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 19), 0, 37)


@functools.cache
def params_of(config, dtype="float32"):
    init: Any = jax.jit(Decoder(config).init)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), init(jax.random.key(0), TOKENS)["params"])


def loss_of(config, attention, remat="products"):
    decoder: Any = Decoder(config, remat, attention)
    return lambda params, tokens: jnp.square(decoder.apply({"params": params}, tokens)).mean()


def step(config, attention):
    return jax.jit(jax.value_and_grad(loss_of(config, attention)))


def distance(one, other):
    """The largest difference of two trees' leaves, each over the other leaf's largest entry."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    gaps = (np.abs(a - b).max() / (np.abs(b).max() or 1) for a, b in leaves)
    return max(map(float, gaps))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_values_and_gradients_are_those_of_blocks(config, monkeypatch):
    monkeypatch.setattr(_attention, "_block_size", lambda length: 5)
    params = params_of(config)
    got, want = (step(config, attention)(params, TOKENS) for attention in ("xla", "blocks"))
    assert distance(got, want) < 1e-5


def test_in_bfloat16_it_is_as_near_to_float32_as_blocks_are():
    exact = jax.jit(loss_of(CONFIG, "blocks"))(params_of(CONFIG), TOKENS)
    narrow = params_of(CONFIG, "bfloat16")
    off = {
        a: distance(jax.jit(loss_of(CONFIG, a))(narrow, TOKENS), exact) for a in ("xla", "blocks")
    }
    assert off["xla"] < max(off["blocks"], 2**-8)


@pytest.mark.parametrize("remat", models.REMATS)
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


def test_a_loaded_model_and_its_loss_go_by_it_and_blocks_compute_less(tiny):
    tokens = jnp.zeros((1, 128), jnp.int32)
    batch = {"tokens": tokens, "positions": tokens, "labels": tokens, "weights": tokens * 1.0}

    def counted(fn, attention):
        model = models.load(tiny, attention=attention)
        return flops(jax.make_jaxpr(lambda params: fn(model, params))(model.params).jaxpr)

    def loss(model, params):
        return models.answer_loss(model, params, batch)[0]

    for fn in (loss, lambda model, params: model.apply(params, tokens)):
        assert counted(fn, "xla") > counted(fn, "blocks")


@pytest.mark.parametrize("config", [CONFIG, CONFIGS["a window"]])
def test_tokens_through_a_cache_are_as_all_at_once(config):
    decoder, params = Decoder(config, attention="xla"), {"params": params_of(config)}
    apply = jax.jit(decoder.apply, static_argnames="method")
    whole = apply(params, TOKENS, method="hidden")
    cache, places = empty_cache(config, 2, 19, jnp.float32), jnp.arange(19)
    seen = jnp.broadcast_to(places <= places[:, None], (2, 19, 19))
    for at, until in ((0, 11), (11, 12), (12, 19)):
        rows = (TOKENS[:, at:until], jnp.tile(places[at:until], (2, 1)), seen[:, at:until])
        out, cache = apply(params, *rows, cache, at, method="extend")
        assert distance(out, whole[:, at:until]) < 1e-5


def test_the_fused_kernel_is_as_near_as_xla_or_refused_where_there_is_none(tiny):
    """At an odd length, for which its gradient needs padding."""
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match="JAX, which runs on cpu here, says 'cuDNN is not"):
            models.load(tiny, dtype="bfloat16", attention="cudnn")
        return
    narrow = params_of(CONFIG, "bfloat16")
    exact = step(CONFIG, "xla")(params_of(CONFIG), TOKENS)
    off = {a: distance(step(CONFIG, a)(narrow, TOKENS), exact) for a in ("xla", "cudnn")}
    assert off["cudnn"] < 2 * off["xla"]


@pytest.mark.parametrize(
    ("attention", "changes", "dtype", "told"),
    [
        ("flash", {}, "bfloat16", ["attention is 'flash': expected one of blocks, xla, cudnn"]),
        ("xla", {"attention_cap": 50.0}, "float32", ["caps its scores at 50: use"]),
        ("xla", {"windows": (9, None, 9)}, "float32", ["see differently far back"]),
        ("xla", {"sinks": True}, "float32", ["its heads have sinks: use attention='blocks'"]),
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
        _fused_attention.check(attention, dataclasses.replace(CONFIG, **changes), dtype)
    assert all(words in str(raised.value) for words in told)


@pytest.mark.parametrize(
    ("attention", "changes", "told"),
    [
        ("xla", {"attention_cap": 50.0}, "caps its scores at 50"),
        ("cudnn", {"windows": (9, None, 9)}, "see differently far back"),
        ("flash", {}, "attention is 'flash'"),
    ],
)
def test_it_is_never_silently_another_one(attention, changes, told):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=told):
        jax.eval_shape(loss_of(config, attention), params_of(CONFIG), TOKENS)


def test_a_wrong_name_is_refused_before_anything_is_looked_for():
    with pytest.raises(ValueError, match="attention is 'flash'"):
        models.load("nobody/nothing", attention="flash")
