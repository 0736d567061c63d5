"""OLMo 2 (arXiv 2501.00656): norms after attention and MLP alone, queries and keys normed whole."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import Gguf
from jlora.models._families._llama import ATTENTION_BIASES, DEFAULTS, HEAD_NORMS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads
from jlora.models._files._torch_tensors import plain

POST_NORM_LEAVES = {
    **{path: leaf for path, leaf in LEAVES.items() if not path.endswith("_norm/scale")},
    **HEAD_NORMS,
    "layers/attn_post_norm/scale": plain("model.layers.{}.post_attention_layernorm.weight"),
    "layers/mlp_post_norm/scale": plain("model.layers.{}.post_feedforward_layernorm.weight"),
}
POST_NORM_FEATURES = {"pre_norms": False, "post_norms": True, "qk_norm": True}
OLMO_DEFAULTS = {**DEFAULTS, "rms_norm_eps": 1e-5, "attention_bias": False}

OLMO2 = Family(
    architecture="Olmo2ForCausalLM",
    leaves={**POST_NORM_LEAVES, **ATTENTION_BIASES},
    parts=(SIZES, Heads(), Activation(), Biases(), Rope()),
    features={**POST_NORM_FEATURES, "qk_norm_joint": True},
    defaults=OLMO_DEFAULTS,
    gguf=Gguf("olmo2"),
)
