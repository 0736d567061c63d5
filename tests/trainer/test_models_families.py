"""Every family's tree, settings and adapters, without the oracle."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from benchmarks._shared.flops import flops
from jlora import models
from jlora.models import ClampedGate, Decoder, DecoderConfig, Experts, Stored
from jlora.models._answers._generate import Rules, generate
from jlora.models._families import FAMILIES
from jlora.models._net import _attention
from jlora.models._net._decoder import empty_cache
from jlora.models._net._rotary import rotary

SIZES = {
    "vocab_size": 37,
    "hidden_size": 22,
    "intermediate_size": 26,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
}
MIXTRAL = {**SIZES, "num_local_experts": 5, "num_experts_per_tok": 2}
QWEN_MOE = {**SIZES, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 7}
WINDOWS = {**SIZES, "sliding_window": 5, "sliding_window_pattern": 2}
GPT2 = {"vocab_size": 37, "n_embd": 28, "n_layer": 3, "n_head": 4, "n_positions": 64}
DEEPSEEK = {
    **SIZES,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 9,
    "kv_lora_rank": 7,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 4,
    "v_head_dim": 3,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 2,
    "n_group": 3,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
SETTINGS = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": 5},
    "qwen2": SIZES,
    "qwen3": SIZES,
    "qwen3_moe": QWEN_MOE,
    "gemma2": {**SIZES, "sliding_window": 5},
    "gemma3_text": {**SIZES, "sliding_window": 5, "sliding_window_pattern": 2},
    "gemma3": {
        "text_config": {**SIZES, "sliding_window": 5, "sliding_window_pattern": 2},
        "eos_token_id": [1, 2],
    },
    "phi3": SIZES,
    "gpt_oss": {
        **SIZES,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "intermediate_size": 7,
        "sliding_window": 5,
    },
    "gpt2": GPT2,
    "gemma": SIZES,
    "mixtral": MIXTRAL,
    "ministral": {**SIZES, "sliding_window": 5},
    "qwen2_moe": {**QWEN_MOE, "shared_expert_intermediate_size": 6},
    "olmo2": SIZES,
    "olmo3": {**SIZES, "sliding_window": 5},
    "granite": {
        **SIZES,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 7.0,
    },
    "granitemoe": MIXTRAL,
    "smollm3": {**SIZES, "no_rope_layers": [1, 0, 1, 1]},
    "starcoder2": SIZES,
    "glm4": SIZES,
    "cohere": SIZES,
    "cohere2": WINDOWS,
    "exaone4": WINDOWS,
    "seed_oss": SIZES,
    "ernie4_5": SIZES,
    "hunyuan_v1_dense": {
        **SIZES,
        "rope_scaling": {"type": "dynamic", "alpha": 9.0},
    },
    "nemotron": SIZES,
    "arcee": SIZES,
    "deepseek_v3": DEEPSEEK,
    "deepseek_v2": {**DEEPSEEK, "q_lora_rank": None, "topk_method": "group_limited_greedy"},
}


def config_of(family, **changes):
    settings = {"model_type": family, **SETTINGS[family], **changes}
    return models.from_huggingface(settings, "config.json")


def abstract_params(config):
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)["params"]


def random_params(config):
    leaves, structure = jax.tree.flatten(abstract_params(config))
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, drawn)


def shapes(config):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config))
    }


LLAMA = {
    "embed/embedding": (37, 22),
    "head/kernel": (22, 37),
    "layers/attn/k_proj/kernel": (3, 22, 20),
    "layers/attn/o_proj/kernel": (3, 40, 22),
    "layers/attn/q_proj/kernel": (3, 22, 40),
    "layers/attn/v_proj/kernel": (3, 22, 20),
    "layers/attn_norm/scale": (3, 22),
    "layers/mlp/down_proj/kernel": (3, 26, 22),
    "layers/mlp/gate_proj/kernel": (3, 22, 26),
    "layers/mlp/up_proj/kernel": (3, 22, 26),
    "layers/mlp_norm/scale": (3, 22),
    "norm/scale": (22,),
}


def without_head(tree):
    return {path: shape for path, shape in tree.items() if path != "head/kernel"}


HEAD_NORMS = {"layers/attn/q_norm/scale": (3, 10), "layers/attn/k_norm/scale": (3, 10)}
QKV_BIASES = {
    "layers/attn/q_proj/bias": (3, 40),
    "layers/attn/k_proj/bias": (3, 20),
    "layers/attn/v_proj/bias": (3, 20),
}
NO_MLP = {path: shape for path, shape in LLAMA.items() if "/mlp/" not in path}
MIXTURE = {
    **NO_MLP,
    "layers/mlp/router/kernel": (3, 22, 5),
    "layers/mlp/experts/gate_up_proj/kernel": (3, 5, 22, 52),
    "layers/mlp/experts/down_proj/kernel": (3, 5, 26, 22),
}
QWEN_MIXTURE = {
    **MIXTURE,
    "layers/mlp/experts/gate_up_proj/kernel": (3, 5, 22, 14),
    "layers/mlp/experts/down_proj/kernel": (3, 5, 7, 22),
}
NO_GATE = {path: shape for path, shape in LLAMA.items() if "gate_proj" not in path}
POST_NORMS = {
    **{path: shape for path, shape in LLAMA.items() if not path.endswith("_norm/scale")},
    "layers/attn_post_norm/scale": (3, 22),
    "layers/mlp_post_norm/scale": (3, 22),
}
JOINT_NORMS = {"layers/attn/q_norm/scale": (3, 40), "layers/attn/k_norm/scale": (3, 20)}
NORM_BIASES = {
    "layers/attn_norm/bias": (3, 22),
    "layers/mlp_norm/bias": (3, 22),
    "norm/bias": (22,),
}
COHERE = {
    path: shape
    for path, shape in LLAMA.items()
    if path not in ("head/kernel", "layers/mlp_norm/scale")
}
GEMMA2 = {
    **without_head(LLAMA),
    "layers/attn_post_norm/scale": (3, 22),
    "layers/mlp_post_norm/scale": (3, 22),
}


def stack(name, layers, leaves):
    return {f"layers/{name}/{path}": (layers, *shape) for path, shape in leaves.items()}


LATENT = {
    "attn_norm/scale": (22,),
    "attn/q_a_proj/kernel": (22, 9),
    "attn/q_a_norm/scale": (9,),
    "attn/q_b_proj/kernel": (9, 36),
    "attn/kv_a_proj/kernel": (22, 11),
    "attn/kv_a_norm/scale": (7,),
    "attn/kv_b_proj/kernel": (7, 32),
    "attn/o_proj/kernel": (12, 22),
    "mlp_norm/scale": (22,),
}
LATENT_OF_THE_INPUT = {
    **{path: shape for path, shape in LATENT.items() if "/q_" not in path},
    "attn/q_proj/kernel": (22, 36),
}
DENSE = {
    "mlp/gate_proj/kernel": (22, 26),
    "mlp/up_proj/kernel": (22, 26),
    "mlp/down_proj/kernel": (26, 22),
}
SHARED_EXPERTS = {
    "mlp/router/kernel": (22, 6),
    "mlp/experts/gate_up_proj/kernel": (6, 22, 16),
    "mlp/experts/down_proj/kernel": (6, 8, 22),
    "mlp/shared/gate_proj/kernel": (22, 16),
    "mlp/shared/up_proj/kernel": (22, 16),
    "mlp/shared/down_proj/kernel": (16, 22),
}
NO_LAYERS = {path: shape for path, shape in LLAMA.items() if "layers/" not in path}
TREES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": {**LLAMA, **QKV_BIASES},
    "qwen3": {**LLAMA, **HEAD_NORMS},
    "qwen3_moe": {**QWEN_MIXTURE, **HEAD_NORMS},
    "gpt_oss": {
        **{path: shape for path, shape in LLAMA.items() if "/mlp/" not in path},
        "layers/attn/q_proj/bias": (3, 40),
        "layers/attn/k_proj/bias": (3, 20),
        "layers/attn/v_proj/bias": (3, 20),
        "layers/attn/o_proj/bias": (3, 22),
        "layers/attn/sinks": (3, 4),
        "layers/mlp/router/kernel": (3, 22, 5),
        "layers/mlp/router/bias": (3, 5),
        "layers/mlp/experts/gate_up_proj/kernel": (3, 5, 22, 14),
        "layers/mlp/experts/gate_up_proj/bias": (3, 5, 14),
        "layers/mlp/experts/down_proj/kernel": (3, 5, 7, 22),
        "layers/mlp/experts/down_proj/bias": (3, 5, 22),
    },
    "gemma2": GEMMA2,
    "gemma3_text": {**GEMMA2, **HEAD_NORMS},
    "gemma3": {**GEMMA2, **HEAD_NORMS},
    "phi3": {
        "embed/embedding": (37, 22),
        "head/kernel": (22, 37),
        "layers/attn/o_proj/kernel": (3, 40, 22),
        "layers/attn/qkv_proj/kernel": (3, 22, 80),
        "layers/attn_norm/scale": (3, 22),
        "layers/mlp/down_proj/kernel": (3, 26, 22),
        "layers/mlp/gate_up_proj/kernel": (3, 22, 52),
        "layers/mlp_norm/scale": (3, 22),
        "norm/scale": (22,),
    },
    "gpt2": {
        "embed/embedding": (37, 28),
        "layers/attn/o_proj/bias": (3, 28),
        "layers/attn/o_proj/kernel": (3, 28, 28),
        "layers/attn/qkv_proj/bias": (3, 84),
        "layers/attn/qkv_proj/kernel": (3, 28, 84),
        "layers/attn_norm/bias": (3, 28),
        "layers/attn_norm/scale": (3, 28),
        "layers/mlp/down_proj/bias": (3, 28),
        "layers/mlp/down_proj/kernel": (3, 112, 28),
        "layers/mlp/up_proj/bias": (3, 112),
        "layers/mlp/up_proj/kernel": (3, 28, 112),
        "layers/mlp_norm/bias": (3, 28),
        "layers/mlp_norm/scale": (3, 28),
        "norm/bias": (28,),
        "norm/scale": (28,),
        "positions/embedding": (64, 28),
    },
    "gemma": without_head(LLAMA),
    "mixtral": MIXTURE,
    "ministral": LLAMA,
    "qwen2_moe": {
        **QWEN_MIXTURE,
        **QKV_BIASES,
        "layers/mlp/shared/gate_proj/kernel": (3, 22, 6),
        "layers/mlp/shared/up_proj/kernel": (3, 22, 6),
        "layers/mlp/shared/down_proj/kernel": (3, 6, 22),
        "layers/mlp/shared_gate/kernel": (3, 22, 1),
    },
    "olmo2": {**POST_NORMS, **JOINT_NORMS},
    "olmo3": {**POST_NORMS, **JOINT_NORMS},
    "granite": LLAMA,
    "granitemoe": MIXTURE,
    "smollm3": without_head(LLAMA),
    "starcoder2": {
        **without_head(NO_GATE),
        **QKV_BIASES,
        **NORM_BIASES,
        "layers/attn/o_proj/bias": (3, 22),
        "layers/mlp/up_proj/bias": (3, 26),
        "layers/mlp/down_proj/bias": (3, 22),
    },
    "glm4": {
        **NO_MLP,
        **QKV_BIASES,
        "layers/attn_post_norm/scale": (3, 22),
        "layers/mlp_post_norm/scale": (3, 22),
        "layers/mlp/gate_up_proj/kernel": (3, 22, 52),
        "layers/mlp/down_proj/kernel": (3, 26, 22),
    },
    "cohere": COHERE,
    "cohere2": COHERE,
    "exaone4": {**POST_NORMS, **HEAD_NORMS},
    "seed_oss": {**LLAMA, **QKV_BIASES},
    "ernie4_5": without_head(LLAMA),
    "hunyuan_v1_dense": {**LLAMA, **HEAD_NORMS},
    "nemotron": {**NO_GATE, **NORM_BIASES},
    "arcee": NO_GATE,
    "deepseek_v3": {
        **NO_LAYERS,
        **stack("0-0", 1, {**LATENT, **DENSE}),
        **stack("1-2", 2, {**LATENT, **SHARED_EXPERTS, "mlp/router_correction": (6,)}),
    },
    "deepseek_v2": {
        **NO_LAYERS,
        **stack("0-0", 1, {**LATENT_OF_THE_INPUT, **DENSE}),
        **stack("1-2", 2, {**LATENT_OF_THE_INPUT, **SHARED_EXPERTS}),
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tree_is_stacked_by_layer_and_acts_from_the_right(family):
    assert shapes(config_of(family)) == TREES[family]
    assert {re.sub(r"/\d-\d/", "/", path) for path in TREES[family]} <= {*FAMILIES[family].leaves}


# Those that have every operation between them; the others' programs are made of the same.
ALIKE = {
    "ministral",
    "olmo3",
    "granitemoe",
    "cohere",
    "seed_oss",
    "arcee",
    "gemma",
    "ernie4_5",
    "deepseek_v2",
}
PROGRAMS = [family for family in FAMILIES if family not in ALIKE]


@pytest.mark.parametrize("family", PROGRAMS)
def test_adapters_on_every_linear_weight_stay_factored_under_remat_and_in_the_gradient(family):
    config = config_of(family)
    params, tokens = abstract_params(config), jax.ShapeDtypeStruct((2, 9), jnp.int32)

    def loss(params, tokens):
        return Decoder(config, True).apply({"params": params}, tokens).mean()

    axes = jlora.trace_axes(loss, params, tokens)
    narrow = {"shared_gate": 1} if "layers/mlp/shared_gate/kernel" in TREES[family] else {}
    lora_config = jlora.LoraConfig(targets="layers/.*/kernel", rank=2, rank_pattern=narrow)
    split = lambda params: jlora.split(params, lora_config, jax.random.key(0), axes=axes)  # noqa: E731
    frozen, lora = jax.eval_shape(split, params)
    kernels = {path for path in TREES[family] if path.endswith("kernel")}
    assert set(lora) == kernels - {"head/kernel"}
    report = jlora.explain(loss, frozen, lora, tokens)
    assert (report.factored, report.materialised) == (len(lora), 0)
    step = jax.value_and_grad(jlora.lift(loss, strict=True), argnums=1)
    assert jax.eval_shape(step, frozen, lora, tokens)[1].keys() == lora.keys()


@pytest.mark.parametrize("family", PROGRAMS)
def test_parameters_of_half_precision_give_hidden_states_of_theirs_and_float32_scores(family):
    config = config_of(family)
    narrow = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), abstract_params(config)
    )
    tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
    run = lambda method: jax.eval_shape(  # noqa: E731
        lambda params, tokens: Decoder(config).apply({"params": params}, tokens, method=method),
        *(narrow, tokens),
    )
    assert run("hidden").dtype == jnp.bfloat16
    assert run("__call__").dtype == jnp.float32


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


@pytest.mark.parametrize(
    "config",
    [
        *(EVERYTHING, THE_REST, config_of("gpt2"), config_of("mistral"), config_of("olmo2")),
        config_of("deepseek_v3"),
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


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_come_back_from_the_configuration(family):
    config = config_of(family)
    written = models.to_huggingface(config)
    assert written["model_type"] == family
    assert models.from_huggingface(written, "config.json") == config


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("mistral", {"hidden_act": "mish"}, ["hidden_act is 'mish', but only 'silu'"]),
        (
            "qwen2",
            {"use_sliding_window": True, "layer_types": ["full_attention", "chunked"]},
            ["layer_types has 2 entries, expected 3", "layer_types has 'chunked': expected"],
        ),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, ["but there is no window"]),
        (
            "qwen3_moe",
            {"mlp_only_layers": [1], "decoder_sparse_step": 2, "num_experts": None},
            [
                "mlp_only_layers is [1], but only [] is supported",
                "decoder_sparse_step is 2, but only 1 is supported",
                "num_experts is missing",
            ],
        ),
        ("qwen3_moe", {"num_experts_per_tok": 6}, ["6 of 5 experts can't be chosen"]),
        (
            "gemma2",
            {"use_bidirectional_attention": True, "rope_scaling": {"type": "ntk"}},
            [
                "use_bidirectional_attention is True, but only False is supported",
                "RoPE scaling of type 'ntk': expected none, 'linear', 'llama3', 'yarn', 'longrope'",
            ],
        ),
        (
            "gemma3_text",
            {
                "attn_logit_softcapping": 50.0,
                "rope_parameters": {
                    "full_attention": {"rope_type": "yarn", "factor": "8", "truncate": False},
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0},
                },
            },
            [
                "attn_logit_softcapping is 50.0, but only None is supported",
                "RoPE scaling of type 'yarn' has factor '8': expected a number above 0",
                "truncate is false, but only true is supported",
                "RoPE scaling of type 'linear': expected none",
            ],
        ),
        (
            "smollm3",
            {"no_rope_layers": [1, 0], "mlp_bias": True, "hidden_act": "mish"},
            ["no_rope_layers has 2 entries, expected at least 3", "hidden_act is 'mish'"],
        ),
        ("granite", {"logits_scaling": 0}, ["logits_scaling is 0, by which nothing can be"]),
        ("cohere", {"use_qk_norm": True}, ["use_qk_norm is True"]),
        (
            "cohere2",
            {"layer_switch": 2, "use_parallel_block": False},
            ["layer_switch is 2, but only 4", "use_parallel_block is False, but only True"],
        ),
        ("hunyuan_v1_dense", {"use_cla": True}, ["use_cla is True, but only False is supported"]),
        (
            "exaone4",
            {"sliding_window_pattern": "LLG"},
            ["sliding_window_pattern is 'LLG': expected a number"],
        ),
        (
            "qwen2_moe",
            {"decoder_sparse_step": 2, "shared_expert_intermediate_size": None},
            ["decoder_sparse_step is 2", "shared_expert_intermediate_size is missing"],
        ),
        ("nemotron", {"norm_eps": None}, ["norm_eps is missing"]),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 0]}},
            [
                "RoPE scaling of type 'longrope' has short_factor: expected a list of numbers "
                "above 0, lacks long_factor"
            ],
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1] * 5, "long_factor": [1] * 4}},
            ["long_factor of the RoPE scaling has 4 entries: expected 5"],
        ),
        (
            "qwen2",
            {
                "rope_scaling": {"type": "yarn", "factor": 4.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
            ["rope_scaling and rope_parameters differ in rope_type"],
        ),
        ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5, but only 1.0"]),
        ("llama", {"rope_scaling": {"type": "linear"}}, ["of type 'linear' lacks factor"]),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True, "n_embd": 30},
            [
                "scale_attn_by_inverse_layer_idx is True, but only False is supported",
                "add_cross_attention is True, but only False is supported",
                "n_embd is 30: expected a multiple of n_head, 4",
            ],
        ),
    ],
)
def test_settings_that_the_decoder_has_not_are_named_all_at_once(family, changes, told):
    with pytest.raises(ValueError, match=r"^config\.json: ") as caught:
        config_of(family, **changes)
    for part in told:
        assert part in str(caught.value)


def test_a_decoder_that_its_family_has_no_settings_for_is_not_written():
    odd = dataclasses.replace(config_of("mistral"), windows=(3, None, 5), qk_norm=True)
    with pytest.raises(
        ValueError, match=r"no config\.json can say this: .*qk_norm is True.*windows"
    ):
        models.to_huggingface(odd)


def test_what_can_not_be_a_decoder_is_named_all_at_once():
    with pytest.raises(ValueError, match="model configuration") as caught:
        DecoderConfig(
            **{**dataclasses.asdict(config_of("llama")), "activation": "mish", "windows": (1, 0)}
        )
    for part in ("activation is 'mish': expected silu", "2 windows: expected 3", "at least 1"):
        assert part in str(caught.value)


EXPERTS = Stored("m.{}.experts.gate_up_proj", "experts", ("gate_proj", "up_proj"))


def test_one_layer_of_experts_lies_in_a_file_as_a_tensor_for_each_and_comes_back():
    value = np.arange(2 * 3 * 8.0).reshape(2, 3, 8)  # (experts, in, gate and up)
    tensors = models.to_stored(EXPERTS, 4, value)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "m.4.experts.0.gate_proj.weight": (4, 3),
        "m.4.experts.0.up_proj.weight": (4, 3),
        "m.4.experts.1.gate_proj.weight": (4, 3),
        "m.4.experts.1.up_proj.weight": (4, 3),
    }
    np.testing.assert_array_equal(tensors["m.4.experts.1.up_proj.weight"], value[1, :, 4:].T)
    np.testing.assert_array_equal(models.from_stored(EXPERTS, 4, value.shape, tensors), value)
    held = {"m.4.experts.gate_up_proj": value.swapaxes(1, 2)}
    np.testing.assert_array_equal(models.from_stored(EXPERTS, 4, value.shape, held), value)
    tensors["m.4.experts.1.up_proj.weight"] = np.zeros((3, 4))
    del tensors["m.4.experts.0.up_proj.weight"]
    with pytest.raises(
        ValueError, match=r"0\.up_proj\.weight is missing; .*1\.up.* shape \(3, 4\)"
    ):
        models.from_stored(EXPERTS, 4, value.shape, tensors)


def test_a_model_says_what_its_leaves_are_called_and_nobody_changes_it(tiny):
    model = models.load(tiny)
    assert model.names.keys() == model.stored.keys()
    assert model.names["layers/mlp/up_proj/kernel"] == "model.layers.{}.mlp.up_proj.weight"
    assert "head/kernel" not in model.names  # the embedding is the head
    assert not any(leaf.fan_in_fan_out for leaf in model.stored.values())
    assert FAMILIES["gpt2"].leaves["layers/attn/qkv_proj/kernel"].fan_in_fan_out
    with pytest.raises(TypeError):
        model.names["embed/embedding"] = "mine"  # type: ignore


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1, 2, 2, 3, 4],
    "long_factor": [2, 4, 6, 8, 9],
}


def test_a_text_turns_by_its_own_length_and_not_by_that_of_its_neighbours():
    config = config_of("phi3", original_max_position_embeddings=20, rope_scaling=LONGROPE)
    positions = jnp.array([[0, 4, 19], [0, 4, 20]])
    cos, sin = rotary(config, positions, jnp.float32, local=False)
    sharp = math.sqrt(1 + math.log(64 / 20) / math.log(20))
    for row, factors in ((0, "short_factor"), (1, "long_factor")):
        divided = 10000.0 ** -(np.arange(5) / 5) / np.array(LONGROPE[factors])
        angles = np.asarray(positions)[row, :, None] * divided
        np.testing.assert_allclose(cos[row, :, 0], sharp * np.cos(angles), atol=1e-5)
        np.testing.assert_allclose(sin[row, :, 0], sharp * np.sin(angles), atol=1e-5)


def test_answers_that_grow_past_the_original_length_are_those_without_a_cache():
    config = config_of("phi3", original_max_position_embeddings=20, rope_scaling=LONGROPE)
    params, decoder = random_params(config), Decoder(config)
    prompts, count, width = [list(range(3, 19)), [5, 9, 30, 12]], 10, 16
    tokens = np.zeros((2, width), np.int32)
    starts = jnp.array([width - len(prompt) for prompt in prompts], np.int32)
    for line, prompt in enumerate(prompts):
        tokens[line, starts[line] :] = prompt
    rules = Rules(np.array([-1], np.int32), {})
    keys = jax.random.split(jax.random.key(0), 2)
    written = generate(decoder, params, jnp.asarray(tokens), starts, keys, rules, count)
    for line, prompt in enumerate(prompts):
        text = np.array([[*prompt, *written[line].tolist()]])
        follows = lambda text: np.asarray(decoder.apply({"params": params}, text)).argmax(-1)[0]  # noqa: E731
        short, long = follows(text[:, :20]), follows(text)
        # the first text passes 20 tokens on its way, the second does not
        want = [*short, *long[20:]] if len(long) > 20 else short
        assert written[line].tolist() == [int(token) for token in want[len(prompt) - 1 : -1]]


def test_answers_that_stay_within_the_original_length_have_no_second_way():
    def program(original):
        settings = {"original_max_position_embeddings": original, "rope_scaling": LONGROPE}
        decoder = Decoder(config_of("phi3", **settings))
        params = abstract_params(decoder.config)
        rules = Rules(np.array([-1], np.int32), {})
        keys = jax.random.split(jax.random.key(0), 1)
        run = lambda params: generate(  # noqa: E731
            decoder, params, jnp.ones((1, 8), int), jnp.zeros(1, int), keys, rules, 8
        )
        return str(jax.make_jaxpr(run)(params))

    assert "cond[" in program(15)
    assert "cond[" not in program(16)
