"""The tree of parameters that each family's small settings make."""

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
ATTENTION = {
    path.removeprefix("layers/"): shape[1:] for path, shape in NO_MLP.items() if "layers/" in path
}
QWEN3_NEXT = {
    "attn_norm/scale": (22,),
    "mlp/router/kernel": (22, 5),
    "mlp/experts/gate_up_proj/kernel": (5, 22, 14),
    "mlp/experts/down_proj/kernel": (5, 7, 22),
    "mlp/shared/gate_proj/kernel": (22, 6),
    "mlp/shared/up_proj/kernel": (22, 6),
    "mlp/shared/down_proj/kernel": (6, 22),
    "mlp/shared_gate/kernel": (22, 1),
    "mlp_norm/scale": (22,),
}
LINEAR_ATTENTION = {
    "linear_attn/in_proj_qkvz/kernel": (22, 52),
    "linear_attn/in_proj_ba/kernel": (22, 12),
    "linear_attn/conv1d/filter": (34, 1, 4),
    "linear_attn/A_log": (6,),
    "linear_attn/dt_bias": (6,),
    "linear_attn/norm/scale": (3,),
    "linear_attn/out_proj/kernel": (18, 22),
}
GATED_ATTENTION = {
    "attn/q_proj/kernel": (22, 80),
    "attn/k_proj/kernel": (22, 20),
    "attn/v_proj/kernel": (22, 20),
    "attn/o_proj/kernel": (40, 22),
    "attn/q_norm/scale": (10,),
    "attn/k_norm/scale": (10,),
}
LLAMA4 = {
    **NO_LAYERS,
    **stack("0-2-2", 2, {**ATTENTION, **DENSE}),
    **stack(
        "1-3-2",
        2,
        {
            **ATTENTION,
            "mlp/router/kernel": (22, 6),
            "mlp/experts/gate_up_proj/kernel": (6, 22, 14),
            "mlp/experts/down_proj/kernel": (6, 7, 22),
            "mlp/shared/gate_proj/kernel": (22, 7),
            "mlp/shared/up_proj/kernel": (22, 7),
            "mlp/shared/down_proj/kernel": (7, 22),
        },
    ),
    **stack("4-4", 1, {**ATTENTION, **DENSE}),
}
GEMMA3N_LAYER = {
    **DENSE,
    "attn/q_proj/kernel": (22, 40),
    "attn/q_norm/scale": (10,),
    "attn/o_proj/kernel": (40, 22),
    "attn_norm/scale": (22,),
    "attn_post_norm/scale": (22,),
    "mlp_norm/scale": (22,),
    "mlp_post_norm/scale": (22,),
    "altup/router_norm/scale": (22,),
    "altup/router/kernel": (22, 3),
    "altup/prediction/kernel": (3, 9),
    "altup/correction/kernel": (3, 3),
    "laurel/left_proj/kernel": (22, 7),
    "laurel/right_proj/kernel": (7, 22),
    "laurel/norm/scale": (22,),
    "layer_input/scale": (22,),
    "layer_input/gate_proj/kernel": (22, 8),
    "layer_input/out_proj/kernel": (8, 22),
    "layer_input/norm/scale": (22,),
}
OWN_KEYS = {
    "attn/k_proj/kernel": (22, 20),
    "attn/v_proj/kernel": (22, 20),
    "attn/k_norm/scale": (10,),
}
GEMMA3N = {
    **without_head(NO_LAYERS),
    "layer_inputs/embed/embedding": (31, 48),
    "layer_inputs/proj/kernel": (22, 48),
    "layer_inputs/norm/scale": (8,),
    **{f"{path}_stream_{at}/kernel": (22, 22) for path in ("to", "from") for at in range(2)},
    **stack("0-1", 2, {**GEMMA3N_LAYER, **OWN_KEYS}),
    **stack("2-3", 2, {**GEMMA3N_LAYER, **OWN_KEYS}),  # which the last two read too
    **stack("4-5", 2, GEMMA3N_LAYER),
}
TREES = {
    "llama": LLAMA,
    "qwen3_next": {
        **NO_LAYERS,
        **stack("0-2-2", 2, {**QWEN3_NEXT, **LINEAR_ATTENTION}),
        **stack("1-3-2", 2, {**QWEN3_NEXT, **GATED_ATTENTION}),
    },
    "llama4_text": LLAMA4,
    "llama4": LLAMA4,
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
    "gemma3n_text": GEMMA3N,
    "gemma3n": GEMMA3N,
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
