"""Small random models of every family against transformers on torch.

Logits, gradients of adapters, greedy answers, and the files and settings in both directions.
"""

import functools
import json
import tempfile
import warnings
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file

import jlora
from jlora import models
from jlora.models._families import FAMILIES
from jlora.models._files._stacking import layers_of
from jlora.models._files._torch_tensors import oriented

SMALL = {
    "vocab_size": 83,
    "hidden_size": 42,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 700.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_IN_FULL = {
    **YARN,
    "original_max_position_embeddings": 16,
    "beta_fast": 5.0,
    "beta_slow": 0.4,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
    "truncate": False,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.9, 2.2],
    "long_factor": [1.5, 2.0, 4.0, 7.0, 9.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 300.0, "factor": 3.0}
MOE = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 11}
WINDOWS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
MIXTRAL = {"num_local_experts": 5, "num_experts_per_tok": 2}
BOTH_BIASES = {"attention_bias": True, "mlp_bias": True}
MULTIPLIERS = {
    "embedding_multiplier": 3,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.6,
    "logits_scaling": 7.0,
}
GEMMA = {"sliding_window": 7, "query_pre_attn_scalar": 13}
PHI = {"hidden_size": 60, "head_dim": None}
VISION = {
    "vision_config": {
        "hidden_size": 12,
        "intermediate_size": 14,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    },
    "mm_tokens_per_image": 4,
}
GPT_OSS = {
    "num_local_experts": 7,
    "num_experts_per_tok": 3,
    "intermediate_size": 11,
    "sliding_window": 7,
}
GPT2 = {
    "vocab_size": 83,
    "n_embd": 42,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DEEPSEEK = {
    "num_key_value_heads": 6,
    "head_dim": None,
    "q_lora_rank": 13,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 11,
    "n_shared_experts": 2,
    "n_group": 3,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}
STARTS = {"gpt2": GPT2, "gemma3": {}}  # of a family's settings, where they are not SMALL
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
VARIANTS = {
    "llama": ("llama", {}),
    "llama, one key-value head each": ("llama", {"num_key_value_heads": 6}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, another base": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}},
    ),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear rope": ("llama", {"rope_parameters": LINEAR}),
    "llama, yarn": ("llama", {"rope_parameters": YARN_IN_FULL}),
    "llama, yarn with its own sharpness": (
        "llama",
        {"rope_parameters": {**YARN, "attention_factor": 1.9}},
    ),
    "llama, longrope": (
        "llama",
        {
            "rope_parameters": {
                **LONGROPE,
                "original_max_position_embeddings": 32,
                "attention_factor": 1.2,
            },
        },
    ),
    "llama, dynamic rope": (
        "llama",
        {"rope_parameters": DYNAMIC, "max_position_embeddings": 24},
    ),
    "llama, biases": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    ),
    "mistral": ("mistral", {"sliding_window": 7}),
    "mistral, no window": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("qwen2", {"hidden_size": 36, "head_dim": None, "tie_word_embeddings": True}),
    "qwen2, windows": ("qwen2", {"hidden_size": 36, "head_dim": None, **WINDOWS}),
    "qwen3": ("qwen3", {}),
    "qwen3, windows and biases": ("qwen3", {"attention_bias": True, **WINDOWS}),
    "qwen3_moe": ("qwen3_moe", {**MOE, "norm_topk_prob": True}),
    "qwen3_moe, window": ("qwen3_moe", {**MOE, **WINDOWS, "attention_bias": True}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}),
    "gemma2, no caps": (
        "gemma2",
        {
            **GEMMA,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "hidden_activation": "gelu",
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            **GEMMA,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
            },
        },
    ),
    "gemma3_text, all local": ("gemma3_text", {**GEMMA, "final_logit_softcapping": 4.0}),
    "gemma3": (
        "gemma3",
        {
            "text_config": {
                **SMALL,
                **GEMMA,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            **VISION,
        },
    ),
    "gemma3, untied": (
        "gemma3",
        {"text_config": {**SMALL, **GEMMA}, **VISION, "tie_word_embeddings": False},
    ),
    "gemma": ("gemma", {}),
    "gemma, as the first releases say it": (
        "gemma",
        {"hidden_act": "gelu", "attention_bias": True, "tie_word_embeddings": False},
    ),
    "mixtral": ("mixtral", MIXTRAL),
    "mixtral, window": ("mixtral", {**MIXTRAL, "sliding_window": 7, "rms_norm_eps": 1e-3}),
    "ministral": ("ministral", {"sliding_window": 7}),
    "ministral, some windows": ("ministral", {"sliding_window": 7, "layer_types": MIXED}),
    "qwen2_moe": ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 9}),
    "qwen2_moe, windows": (
        "qwen2_moe",
        {
            **MOE,
            "shared_expert_intermediate_size": 16,
            "norm_topk_prob": True,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 7,
        },
    ),
    "olmo2": ("olmo2", {}),
    "olmo2, biases": ("olmo2", {"attention_bias": True, "rope_parameters": LINEAR}),
    "olmo3": (
        "olmo3",
        {
            "sliding_window": 7,
            "layer_types": MIXED,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
            },
        },
    ),
    "olmo3, all windows": ("olmo3", {"sliding_window": 7, "attention_bias": True}),
    "granite": ("granite", MULTIPLIERS),
    "granite, biases": ("granite", {**BOTH_BIASES, "tie_word_embeddings": True}),
    "granitemoe": ("granitemoe", {**MULTIPLIERS, **MIXTRAL}),
    "granitemoe, biases": ("granitemoe", {**MIXTRAL, "attention_bias": True}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3, windows and biases": (
        "smollm3",
        {
            **BOTH_BIASES,
            "no_rope_layers": [0, 1, 1],
            "use_sliding_window": True,
            "sliding_window": 7,
            "tie_word_embeddings": False,
        },
    ),
    "starcoder2": ("starcoder2", {}),
    "starcoder2, window, no biases": (
        "starcoder2",
        {"sliding_window": 7, "use_bias": False, "tie_word_embeddings": False},
    ),
    "glm4": ("glm4", {}),
    "glm4, all of each head": ("glm4", {"partial_rotary_factor": 1.0, "attention_bias": False}),
    "cohere": ("cohere", {"hidden_size": 60, "head_dim": None}),
    "cohere, biases": (
        "cohere",
        {"hidden_size": 60, "head_dim": None, "attention_bias": True, "logit_scale": 0.7},
    ),
    "cohere2": ("cohere2", {"sliding_window": 7, "layer_types": MIXED}),
    "cohere2, as earlier releases say it": (
        "cohere2",
        {"sliding_window": 7, "sliding_window_pattern": 2, "attention_bias": True},
    ),
    "exaone4": ("exaone4", {"sliding_window": 7, "sliding_window_pattern": 2}),
    "exaone4, no window": (
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 3},
    ),
    "seed_oss": ("seed_oss", {}),
    "seed_oss, other biases": (
        "seed_oss",
        {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
    ),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5, biases": ("ernie4_5", {"use_bias": True, "tie_word_embeddings": False}),
    "hunyuan_v1_dense": (
        "hunyuan_v1_dense",
        {
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 500.0,
                "factor": 1.0,
                "alpha": 30.0,
            }
        },
    ),
    "hunyuan_v1_dense, biases": ("hunyuan_v1_dense", {"attention_bias": True}),
    "nemotron": ("nemotron", {}),
    "nemotron, biases": ("nemotron", {**BOTH_BIASES, "partial_rotary_factor": 0.8}),
    "arcee": ("arcee", {"hidden_size": 60}),
    "arcee, biases": ("arcee", {**BOTH_BIASES, "hidden_size": 60, "hidden_act": "silu"}),
    "phi3": ("phi3", {**PHI, "sliding_window": 7}),
    "phi3, a share rotated": ("phi3", {**PHI, "partial_rotary_factor": 0.6}),
    "phi3, an odd share rotated": ("phi3", {**PHI, "partial_rotary_factor": 0.55}),
    "phi3, longrope, a long text": (
        "phi3",
        {**PHI, "original_max_position_embeddings": 20, "rope_parameters": LONGROPE},
    ),
    "phi3, longrope, a short text": (
        "phi3",
        {**PHI, "original_max_position_embeddings": 100, "rope_parameters": LONGROPE},
    ),
    "qwen2, yarn": ("qwen2", {"hidden_size": 36, "head_dim": None, "rope_parameters": YARN}),
    "deepseek_v3": ("deepseek_v3", {**DEEPSEEK, "rope_parameters": YARN_IN_FULL}),
    "deepseek_v3, two dense layers, queries of the input, biases": (
        "deepseek_v3",
        {
            **DEEPSEEK,
            "first_k_dense_replace": 2,
            "q_lora_rank": None,
            "attention_bias": True,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "n_group": 1,
            "topk_group": 1,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
        },
    ),
    "deepseek_v3, no dense layer": (
        "deepseek_v3",
        {**DEEPSEEK, "first_k_dense_replace": 0, "attention_bias": True, "v_head_dim": 12},
    ),
    "deepseek_v3, dense layers alone": ("deepseek_v3", {**DEEPSEEK, "first_k_dense_replace": 3}),
    "deepseek_v2": (
        "deepseek_v2",
        {**DEEPSEEK, "topk_method": "group_limited_greedy", "rope_parameters": YARN_IN_FULL},
    ),
    "deepseek_v2, as Lite, biases": (
        "deepseek_v2",
        {**DEEPSEEK, **BOTH_BIASES, "q_lora_rank": None, "topk_method": "greedy"},
    ),
    "gpt_oss": ("gpt_oss", {**GPT_OSS, "swiglu_limit": 0.8, "max_position_embeddings": 131072}),
    "gpt_oss, no biases on attention": (
        "gpt_oss",
        {
            **GPT_OSS,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "swiglu_alpha": 1.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2, untied": (
        "gpt2",
        {
            "tie_word_embeddings": False,
            "n_inner": 52,
            "scale_attn_weights": False,
            "activation_function": "relu",
        },
    ),
}
TOKENS = np.random.default_rng(0).integers(3, 83, (2, 61))
PROMPTS = [list(range(5, 22)), [44, 9, 71], [17, 60, 61, 5, 5, 80, 12, 33, 8, 20, 31]]


@pytest.fixture(scope="module", autouse=True)
def _compile_fast():
    """The programs are tiny: XLA's optimisations take longer than all the rest."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def settings_of(variant):
    """(model type, what a user would write into config.json)."""
    family, changes = VARIANTS[variant]
    settings = {**STARTS.get(family, SMALL), **changes}
    if settings.get("head_dim", 1) is None:
        del settings["head_dim"]
    return family, settings


def randomised(config):
    """A random model in torch."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, **EAGER)
    for parameter in model.parameters():  # norms and biases too: a one or zero would hide itself
        torch.nn.init.normal_(parameter, std=0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):
            torch.nn.init.normal_(buffer, std=0.2)
    return model.eval()


def of_the_decoder(family, names):
    """The names of tensors without those of parts that are left aside."""
    aside = FAMILIES[family].tensors_aside
    return {name for name in names if not name.removeprefix("model.").startswith(aside)}


@functools.cache
def both(variant):
    """(a random model in torch, the same in jlora, its folder)."""
    family, settings = settings_of(variant)
    oracle = randomised(transformers.AutoConfig.for_model(family, **settings))
    folder = Path(tempfile.mkdtemp())
    oracle.save_pretrained(folder)
    save_tokenizer(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*left aside, as no part of the decoder")
        return oracle, models.load(folder), folder


def save_tokenizer(folder):
    vocabulary = {f"t{k}": k for k in range(83)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.save(str(folder / "tokenizer.json"))


def logits_of(oracle):
    with torch.no_grad():
        return oracle(torch.tensor(TOKENS)).logits.numpy()


def assert_near(ours, theirs, share):
    assert np.abs(np.asarray(ours) - theirs).max() < share * theirs.std()


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def per_layer(path, leaf):
    """(layer, that layer's value) of a stacked leaf; (0, the leaf) of another."""
    values = leaf if path.startswith("layers/") else [leaf]
    return zip(layers_of(path, leaf.shape), values, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant):
    oracle, model, _ = both(variant)
    assert_near(jax.jit(model.apply)(model.params, TOKENS), logits_of(oracle), 1e-4)


def adapted(model):
    """(frozen, lora) with random adapters on every linear weight but the head, the router's too."""
    axes = jlora.trace_axes(model.apply, model.params, jnp.asarray(TOKENS))
    narrow = {path: 1 for path in ("shared_gate",) if f"layers/mlp/{path}/kernel" in model.stored}
    config = jlora.LoraConfig(targets="layers/.*/kernel", rank=3, alpha=5, rank_pattern=narrow)
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
    linear = {p for p, leaf in model.stored.items() if leaf.kind not in ("plain", "buffer")}
    assert set(lora) == linear - {"head/kernel"}

    def loss(params):
        logits = model.apply(params, tokens, remat=True)[:, :-1]
        scores = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1).mean()

    assert jlora.explain(loss, frozen, lora).materialised == 0
    lifted = jlora.lift(loss, strict=True)
    ours, grads = jax.jit(jax.value_and_grad(lifted, argnums=1))(frozen, lora)

    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, **EAGER)
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
        a, b, s = (np.asarray(part) for part in (node.a, node.b, node.scaling))
        for at, layer in enumerate(layers_of(path, node.shape)):
            held = parameters[model.names[path].format(layer)].grad.numpy()
            of_weight = oriented(model.stored[path], held)  # (*experts, in, out)
            for got, want in (
                (grads[path].a[at], s * of_weight @ b[at].swapaxes(-1, -2)),
                (grads[path].b[at], s * a[at].swapaxes(-1, -2) @ of_weight),
            ):
                assert np.abs(want).max() > 0
                assert np.abs(np.asarray(got) - want).max() < 1e-4 * np.abs(want).max(), path


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_we_write_is_what_transformers_writes_and_reads(variant, tmp_path):
    _, model, folder = both(variant)
    tensors = {}
    for path, leaf in flat(model.params).items():
        for layer, value in per_layer(path, np.asarray(leaf)):
            tensors |= models.to_stored(model.stored[path], layer, value)
    theirs = load_file(folder / "model.safetensors")
    family, given = settings_of(variant)
    assert tensors.keys() == of_the_decoder(family, theirs)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, theirs[name])
    ours = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file({**theirs, **ours}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    token_ids = {f"{name}_token_id": SMALL[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    vision = {name: given[name] for name in VISION if name in given}
    settings = {**models.to_huggingface(model.config), **token_ids, **vision}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    # both fresh: transformers' rotary frequencies remember what the model has read so far
    read, again = (
        transformers.AutoModelForCausalLM.from_pretrained(each, **EAGER)
        for each in (tmp_path, folder)
    )
    np.testing.assert_array_equal(logits_of(read), logits_of(again))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_the_parameters_in_memory(family):
    oracle, model, _ = both(family)
    named = {
        model.names[path].format(layer): oriented(model.stored[path], value).shape
        for path, leaf in flat(model.params).items()
        for layer, value in per_layer(path, np.asarray(leaf))
    }
    # persistent buffers too, as files hold them
    theirs = {name: value for name, value in oracle.state_dict().items() if name in named} | dict(
        oracle.named_parameters()
    )
    assert named == {name: tuple(theirs[name].shape) for name in of_the_decoder(family, theirs)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_that_are_left_out_are_those_of_transformers(variant):
    family, settings = settings_of(variant)
    whole = transformers.AutoConfig.for_model(family, **settings).to_dict()
    sparse = models.from_huggingface({**settings, "model_type": family}, "config.json")
    assert sparse == models.from_huggingface(whole, "config.json")
    assert models.from_huggingface(models.to_huggingface(sparse), "config.json") == sparse


OLDER = {
    "gemma3_text": {
        **SMALL,
        "num_hidden_layers": 7,
        "rope_theta": 500.0,
        "rope_local_base_freq": 30.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3,
    },
    "llama": {**SMALL, "rope_theta": 700.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "phi3": {**SMALL, "head_dim": 7, "rope_theta": 90.0, "partial_rotary_factor": 0.5},
    "phi3, longrope": {
        **SMALL,
        "hidden_size": 60,
        "rope_theta": 90.0,
        "original_max_position_embeddings": 64,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": LONGROPE["short_factor"],
            "long_factor": LONGROPE["long_factor"],
        },
    },
    "qwen2, yarn": {
        **SMALL,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen3, yarn": {**SMALL, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "gpt_oss": {
        **SMALL,
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    "llama, dynamic": {**SMALL, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "qwen2": {**SMALL, "rope_theta": 1e6, "use_sliding_window": True, "max_window_layers": 2},
    "gemma2": {**SMALL, "rope_theta": 90.0, "hidden_act": "silu"},
    "gemma": {**SMALL, "hidden_act": "gelu", "hidden_activation": None, "rope_theta": 70.0},
    "mixtral": {**SMALL, "num_local_experts": 9, "rope_theta": 90.0},
    "olmo3": {
        **SMALL,
        "num_hidden_layers": 7,
        "rope_theta": 300.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "smollm3": {**SMALL, "rope_theta": 5e6, "no_rope_layers": [1, 0, 1, 1, 0]},
    "glm4": {**SMALL, "rope_theta": 90.0, "partial_rotary_factor": 0.4},
    "nemotron": {**SMALL, "rope_theta": 90.0, "partial_rotary_factor": 0.8},
    "cohere2": {
        **SMALL,
        "num_hidden_layers": 7,
        "rope_theta": 90.0,
        "sliding_window_pattern": 3,
        "layer_switch": 4,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "use_parallel_block": True,
    },
    "exaone4": {
        **SMALL,
        "rope_theta": 90.0,
        "sliding_window_pattern": "LG",
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "hunyuan_v1_dense": {
        **SMALL,
        "rope_theta": 90.0,
        "rope_scaling": {
            "type": "dynamic",
            "alpha": 9.0,
            "factor": 1.0,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    },
    "qwen3_moe": {**SMALL, "num_experts": 9, "sliding_window": None, "rope_theta": 1e6},
}


@pytest.mark.parametrize("variant", OLDER)
def test_settings_as_earlier_releases_wrote_them_mean_what_transformers_reads(variant):
    family, settings = variant.split(",")[0], OLDER[variant]
    ours = models.from_huggingface({**settings, "model_type": family}, "config.json")
    theirs = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(settings)))
    assert ours == models.from_huggingface(theirs.to_dict(), "config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    nested = FAMILIES[family].nested
    cls = transformers.CONFIG_MAPPING[nested.model_type if nested else family]
    assert FAMILIES[family].defaults == {
        name: getattr(cls, name) for name in FAMILIES[family].defaults
    }


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "mixtral", "granitemoe"])
def test_experts_are_read_from_a_file_by_their_names_in_memory(family, tmp_path):
    oracle, model, folder = both(family)
    held = {name: value.numpy() for name, value in oracle.state_dict().items()}
    name = model.names["layers/mlp/experts/gate_up_proj/kernel"].format(0)
    assert name in held
    assert name not in load_file(folder / "model.safetensors")
    save_file(held, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    read = flat(models.load(tmp_path).params)
    for path, leaf in flat(model.params).items():
        np.testing.assert_array_equal(read[path], leaf)


def test_a_gpt2_file_without_prefix_and_with_masks_is_read(tmp_path):
    _, model, folder = both("gpt2")
    tensors = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = np.ones((1, 1, 128, 128), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    read = flat(models.load(tmp_path).params)
    for path, leaf in flat(model.params).items():
        np.testing.assert_array_equal(read[path], leaf)


def test_names_as_other_releases_write_them_are_read_and_what_is_left_aside_is_said(tmp_path):
    oracle, model, folder = both("gemma3, untied")
    save_file({name: value.numpy() for name, value in oracle.state_dict().items()},
              tmp_path / "model.safetensors")  # fmt: skip
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    told = r"left aside, .*: multi_modal_projector \(\d+ tensors\), vision_tower \(\d+ tensors\)"
    with pytest.warns(UserWarning, match=told):
        read = flat(models.load(tmp_path).params)
    for path, leaf in flat(model.params).items():
        np.testing.assert_array_equal(read[path], leaf)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_gguf_file_is_read_as_transformers_reads_it(family, tmp_path):
    _, settings = settings_of(family)
    # transformers reads no head_dim from GGUF: it is the family's own
    head_dim = {"qwen2": 16, "qwen3": 128}[family]
    settings = {**settings, "hidden_size": 64, "num_attention_heads": 4, "head_dim": head_dim}
    settings["tie_word_embeddings"] = False
    oracle = randomised(transformers.AutoConfig.for_model(family, **settings))
    path = tmp_path / "model.gguf"
    write_gguf(path, family, settings, oracle)
    model = models.load(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    assert_near(jax.jit(model.apply)(model.params, TOKENS), logits_of(oracle), 1e-4)
    np.testing.assert_allclose(logits_of(theirs), logits_of(oracle), atol=1e-5)


def test_a_gguf_file_of_olmo2_has_the_logits(tmp_path):
    settings = {**SMALL, "rms_norm_eps": 1e-6}
    oracle = randomised(transformers.AutoConfig.for_model("olmo2", **settings))
    write_gguf(tmp_path / "model.gguf", "olmo2", settings, oracle)
    model = models.load(tmp_path / "model.gguf")
    assert model.config.family == "olmo2"
    assert_near(jax.jit(model.apply)(model.params, TOKENS), logits_of(oracle), 1e-4)


def write_gguf(path, family, settings, oracle):
    """The model as llama.cpp's converter names its tensors."""
    architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architectures[family], 3)
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_key_length(settings["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["t", "1", *(f"t{k}" for k in range(1, 82))])
    writer.add_token_merges(["t 1"])
    writer.add_token_types([1] * 83)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, parameter in oracle.named_parameters():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(theirs, parameter.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
