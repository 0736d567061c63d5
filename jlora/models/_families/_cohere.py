"""Command R (Cohere 2024): attention and MLP side by side, neighbours rotated together."""

from __future__ import annotations

from jlora.models._families._family import Family, sizes
from jlora.models._families._gguf_route import Gguf, layer_norm
from jlora.models._families._llama import ATTENTION_BIASES, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Same

COHERE_LEAVES = {
    **{path: leaf for path, leaf in LEAVES.items() if path != "layers/mlp_norm/scale"},
    **ATTENTION_BIASES,
}
COHERE_PARTS = (
    *(sizes("layer_norm_eps"), Heads(), Activation(), Biases()),
    Same({"logit_scale": "logit_scale"}),
)
COHERE_FEATURES = {"norm": "layer_no_bias", "parallel": True, "interleaved": True}
COHERE_DEFAULTS = {
    "layer_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "logit_scale": 0.0625,
}

# What its files say beside that, of which transformers knows one value.
COHERE_LIMITS = {
    "use_parallel_block": (True, None),
    "use_gated_activation": (True, None),
    "use_embedding_sharing": (True, None),
    "use_parallel_embedding": (True, None),
    "position_embedding_type": ("rope_gptj", None),
    "rotary_pct": (1.0, None),
    "use_qk_norm": (False, None),
}
COHERE_ENTRIES: dict[str, str | None] = {
    **layer_norm("layer_norm_eps"),
    "logit_scale": "logit_scale",
}

COHERE = Family(
    architecture="CohereForCausalLM",
    classifier=None,
    leaves=COHERE_LEAVES,
    parts=(*COHERE_PARTS, Rope(theta=500_000.0)),
    features=COHERE_FEATURES,
    defaults=COHERE_DEFAULTS,
    only=COHERE_LIMITS,
    gguf=Gguf("command-r", entries=COHERE_ENTRIES),
)
