"""Settings of small models of every family: each differs from its default in some variant."""

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
GEMMA3N = {
    "num_hidden_layers": 7,
    "sliding_window": 7,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"] + MIXED,
    "activation_sparsity_pattern": [0.6, 0.8, 0.0, 0.9, 0.0, 0.7, 0.0],
    "altup_num_inputs": 3,
    "laurel_rank": 5,
    "vocab_size_per_layer_input": 71,
    "hidden_size_per_layer_input": 6,
}
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
QWEN3_NEXT = {
    **MOE,
    "num_hidden_layers": 5,
    "shared_expert_intermediate_size": 9,
    "full_attention_interval": 2,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "partial_rotary_factor": 0.4,
}
LLAMA4 = {
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "intermediate_size": 11,
    "intermediate_size_mlp": 52,
    "no_rope_layer_interval": 2,
    "attention_chunk_size": 7,
    "floor_scale": 40,  # beyond the prompts: transformers counts padding among the positions
    "attn_scale": 0.9,
}
STARTS = {
    "gpt2": GPT2,
    "gemma3": {},
    "gemma3n": {},
    "llama4": {},
}  # of a family's settings, where they are not SMALL
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
    "qwen3_moe, some layers dense": (
        "qwen3_moe",
        {**MOE, "num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
    ),
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
    "gemma3n_text": ("gemma3n_text", GEMMA3N),
    "gemma3n": (
        "gemma3n",
        {
            "text_config": {**SMALL, **GEMMA3N, "num_kv_shared_layers": 3},
            "vision_config": {"hidden_size": 12},
            "audio_config": {
                "hidden_size": 16,
                "input_feat_size": 8,
                "sscp_conv_channel_size": (4, 4),
                "conf_num_attention_heads": 2,
                "conf_num_hidden_layers": 1,
                "conf_attention_chunk_size": 4,
            },
        },
    ),
    "gemma3n_text, nothing shared, all local": (
        "gemma3n_text",
        {
            **GEMMA3N,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention"] * 7,
            "activation_sparsity_pattern": [0.0] * 7,
            "intermediate_size": [52] * 7,
            "final_logit_softcapping": 4.0,
            "vocab_size_per_layer_input": 83,
            "altup_num_inputs": 4,
            "hidden_activation": "gelu",
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3n_text, global keys far before the local ones": (
        "gemma3n_text",
        {
            **GEMMA3N,
            "layer_types": ["full_attention", *MIXED[::2], *MIXED, "full_attention"],
            "num_kv_shared_layers": 4,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
            },
        },
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
    "qwen2_moe, some layers dense": (
        "qwen2_moe",
        {
            **MOE,
            "num_hidden_layers": 6,
            "shared_expert_intermediate_size": 9,
            "mlp_only_layers": [0, 2, 4],
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
    "llama4_text": ("llama4_text", LLAMA4),
    "llama4": (
        "llama4",
        {
            "text_config": {**SMALL, **LLAMA4, "interleave_moe_layer_step": 2},
            "vision_config": {
                "hidden_size": 12,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
                "vision_output_dim": 14,
                "projector_input_dim": 14,
                "projector_output_dim": 14,
            },
        },
    ),
    "llama4_text, alternating": (
        "llama4_text",
        {
            **LLAMA4,
            "num_hidden_layers": 5,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [0, 1, 0, 1, 1],
            "layer_types": ["full_attention", *["chunked_attention"] * 3, "full_attention"],
            "use_qk_norm": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA3,
        },
    ),
    "llama4_text, no chunks, all rotated": (
        "llama4_text",
        {
            **LLAMA4,
            "attention_chunk_size": None,
            "no_rope_layers": [1, 1, 1],
            "moe_layers": [0],
            "rms_norm_eps": 1e-3,
        },
    ),
    "llama4_text, dense": (
        "llama4_text",
        {**LLAMA4, "moe_layers": [], "attn_temperature_tuning": False},
    ),
    "qwen3_next": ("qwen3_next", QWEN3_NEXT),
    "qwen3_next, other kinds": (
        "qwen3_next",
        {
            **QWEN3_NEXT,
            "num_hidden_layers": 6,
            "layer_types": ["full_attention", "linear_attention"] * 3,
            "mlp_only_layers": [1, 3],
            "attention_bias": True,
            "tie_word_embeddings": True,
            "norm_topk_prob": False,
            "linear_conv_kernel_dim": 3,
            "linear_num_value_heads": 2,
            "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.6},
        },
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
