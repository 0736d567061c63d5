"""Gemma (arXiv 2403.08295): llama with norms around one and an embedding as large as the width."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import ONE_ADDED, Gguf
from jlora.models._families._llama import ATTENTION_BIASES, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads

GEMMA = Family(
    architecture="GemmaForCausalLM",
    leaves={**LEAVES, **ATTENTION_BIASES},
    # the first releases say gelu where they mean gelu by tanh
    parts=(SIZES, Heads(), Activation(meant={"gelu": "gelu_tanh"}), Biases(), Rope()),
    features={"norm": "rms_plus_one", "scaled_embedding": True},
    defaults={
        "rms_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "attention_bias": False,
    },
    only={
        "use_bidirectional_attention": (False, None),
        "hidden_activation": ("gelu_pytorch_tanh", None),
    },
    gguf=Gguf("gemma", undo=ONE_ADDED),
)
