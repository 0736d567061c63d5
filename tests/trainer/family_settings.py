"""Small settings of every family, and what is made of them."""

import jax
import jax.numpy as jnp
import numpy as np

from jlora import models
from jlora.models import Decoder

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
LLAMA4 = {
    **SIZES,
    "num_hidden_layers": 5,
    "intermediate_size": 7,
    "intermediate_size_mlp": 26,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 5,
}
GEMMA3N = {
    **SIZES,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"] * 2,
    "sliding_window": 5,
    "activation_sparsity_pattern": [0.8, 0.0, 0.6, 0.0, 0.7, 0.0],
    "altup_num_inputs": 3,
    "laurel_rank": 7,
    "vocab_size_per_layer_input": 31,
    "hidden_size_per_layer_input": 8,
}
SETTINGS = {
    "llama": SIZES,
    "llama4_text": LLAMA4,
    "llama4": {"text_config": LLAMA4},
    "mistral": {**SIZES, "sliding_window": 5},
    "qwen2": SIZES,
    "qwen3": SIZES,
    "qwen3_moe": QWEN_MOE,
    "qwen3_next": {
        **QWEN_MOE,
        "num_hidden_layers": 4,
        "shared_expert_intermediate_size": 6,
        "full_attention_interval": 2,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 3,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
    },
    "gemma2": {**SIZES, "sliding_window": 5},
    "gemma3_text": {**SIZES, "sliding_window": 5, "sliding_window_pattern": 2},
    "gemma3": {
        "text_config": {**SIZES, "sliding_window": 5, "sliding_window_pattern": 2},
        "eos_token_id": [1, 2],
    },
    "gemma3n_text": GEMMA3N,
    "gemma3n": {"text_config": GEMMA3N, "eos_token_id": [1, 2]},
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
